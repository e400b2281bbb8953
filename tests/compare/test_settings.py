"""What is compared: settings and budgets as words."""

from __future__ import annotations

import pytest

from kinfold.codec import base
from kinfold.compare.settings import USUAL, Setting, read_budgets, read_settings
from kinfold.errors import BudgetError, CodecError


def test_a_setting_is_a_codec_and_its_options() -> None:
    text = "osd:score=mag:extra_rank=2"
    assert Setting.parse(text, calibrated=False) == Setting(text, "osd", {"score": "mag", "extra_rank": 2})
    assert Setting.parse("exact", calibrated=False) == Setting("exact", "exact", {})


@pytest.mark.parametrize("given", ["dare, osd,,dare", ["dare", "osd"]])
def test_settings_are_words_without_repeats(given: str | list[str]) -> None:
    assert [setting.text for setting in read_settings(given, calibrated=False)] == ["dare", "osd"]


def test_the_usual_settings_are_all_that_ship_but_rounding() -> None:
    assert {text.split(":")[0] for text in USUAL} | {"rtn"} == base.BUILTIN.keys() | {"fold", "rtn"}
    found = [setting.text for setting in read_settings(None, calibrated=False)]
    assert found == [text for text in USUAL if text.split(":")[0] in base.BUILTIN]


def test_fold_comes_first_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.BUILTIN, "fold", "kinfold.codec.dare:Dare")
    assert read_settings(None, calibrated=False)[0].codec == "fold"


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ("ods", "no codec is called `ods`", "--codecs osd"),
        ("dare:bits=1", "its options are value_bits, keep", ""),
        ("dare:1", "KEY=VALUE", "--codecs osd,dare:value_bits=1"),
        ("exact:bits=1", "`exact` has no options", "--codecs exact"),
        ("osd:score=fisher", "needs calibration", "--calibrate FILE.jsonl"),
        (" , ", "no codec is given", "--codecs osd,dare"),
        ([], "no codec is given", "--codecs osd,dare"),
    ],
)
def test_a_bad_setting_is_named(given: str, words: str, hint: str) -> None:
    with pytest.raises(CodecError, match=words) as error:
        read_settings(given, calibrated=False)
    assert error.value.hint == hint


def test_calibration_lets_fisher_in() -> None:
    assert read_settings("osd:score=fisher", calibrated=True)[0].options == {"score": "fisher"}


def test_budgets_are_words_or_numbers_without_repeats() -> None:
    assert [b.text for b in read_budgets("1/16, 4MB,1/16")] == ["1/16", "4MB"]
    assert [b.file_bytes(3200) for b in read_budgets([500, "1/16"])] == [500, 200]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "no budget is given"),
        ([], "no budget is given"),
        ("1/16,lots", "`lots` is no budget"),
        ("0", "above zero"),
        ("rank:4", "equal bytes"),
    ],
)
def test_a_bad_budget_is_named(given: str, words: str) -> None:
    with pytest.raises(BudgetError, match=words) as error:
        read_budgets(given)
    assert error.value.hint == "--budgets 1/16,1/64,1/256"
