"""Rows as tokens: what the loss counts, what is cut, what does not fit the model."""

from __future__ import annotations

from typing import Any

import pytest
from worlds import given, reader

from kinfold.errors import ForgetRowsError


def test_the_loss_counts_the_answer_only(tokenizer: Any) -> None:
    (found,) = reader(tokenizer).tokens(given({"prompt": "a b", "completion": "c d"}))
    assert (found.ids, found.first, found.counted) == ((2, 3, 4, 5), 2, 2)
    (same,) = reader(tokenizer).tokens(given({"question": "a b", "answer": "c d"}))
    assert same == found
    (whole,) = reader(tokenizer).tokens(given({"text": "a b c d"}))
    assert (whole.ids, whole.first, whole.counted) == ((2, 3, 4, 5), 1, 3)
    (ids,) = reader(None).tokens(given({"input_ids": [1, 2]}))
    assert (ids.ids, ids.first) == ((1, 2), 1)


def test_an_end_token_after_the_prompt_is_left_out() -> None:
    class Ending:
        eos_token_id = 9

        def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()] + [9] * add_special_tokens}

    (found,) = reader(Ending()).tokens(given({"prompt": "aa b", "completion": "ccc"}))
    assert (found.ids, found.first) == ((2, 1, 3), 2)


def test_long_rows_are_refused_or_cut(tokenizer: Any) -> None:
    long = given({"text": "a b c d e f g h a b", "label": 2})
    for kind in ("causal-lm", "pooled-head"):
        with pytest.raises(ForgetRowsError, match="row 0 of the forget rows has 10 tokens; the variant reads 8"):
            reader(tokenizer, kind).tokens(long)
        assert len(reader(tokenizer, kind, cut=5).tokens(long)[0].ids) == 5


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("pooled-head", {"text": "a"}, "label None; the variant knows 0 to 2"),
        ("pooled-head", {"text": "a", "label": 3}, "label 3; the variant knows 0 to 2"),
        ("pooled-head", {"text": "a", "label": True}, "label True"),
        ("pooled-head", {"label": 1}, "lacks what a pooled-head reads"),
        ("sequence-classification", {"text": "", "label": 1}, "no tokens"),
        ("causal-lm", {"prompt": "a"}, "lacks what a causal-lm reads"),
        ("causal-lm", {"label": 1}, "lacks what a causal-lm reads"),
        ("causal-lm", {"prompt": "a", "completion": ""}, "no tokens to predict"),
        ("causal-lm", {"text": "a"}, "no tokens to predict"),
        ("causal-lm", {"input_ids": [1, -2]}, "lacks what a causal-lm reads"),
        ("causal-lm", {"input_ids": [1, 10]}, "token 10; the variant knows those below 10"),
    ],
)
def test_rows_that_do_not_fit_the_task(tokenizer: Any, kind: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ForgetRowsError, match=message):
        reader(tokenizer, kind).tokens(given(row))


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(ForgetRowsError, match="no tokenizer"):
        reader(None).tokens(given({"text": "a b"}))


def test_perturbed_answers(tokenizer: Any) -> None:
    row = {"prompt": "a", "completion": "b", "perturbed": ["c", "d e"]}
    found = reader(tokenizer).variants(given(row)[0])
    assert found is not None
    assert (found[0].ids, [one.ids for one in found[1]]) == ((2, 3), [(2, 4), (2, 5, 6)])
    again = reader(tokenizer).variants(given({**row, "paraphrase": "h"})[0])
    assert again is not None
    assert again[0].ids == (2, 9)
    assert reader(tokenizer).variants(given({"prompt": "a", "completion": "b"})[0]) is None
    assert reader(tokenizer, "pooled-head").variants(given(row)[0]) is None
    with pytest.raises(ForgetRowsError, match="`perturbed` is a list"):
        reader(tokenizer).variants(given({**row, "perturbed": "c"})[0])


def test_perturbed_answers_must_fit_the_model_too(tokenizer: Any) -> None:
    row = {"prompt": "a", "completion": "b", "perturbed": ["c", "d " * 9]}
    with pytest.raises(ForgetRowsError, match=r"perturbed or paraphrased answer of row 0 .* has 10 tokens"):
        reader(tokenizer).variants(given(row)[0])
    with pytest.raises(ForgetRowsError, match=r"perturbed or paraphrased answer of row 0 .* has 10 tokens"):
        reader(tokenizer).variants(given({**row, "paraphrase": "d " * 9, "perturbed": ["c"]})[0])
    cut = reader(tokenizer, cut=4).variants(given(row)[0])
    assert cut is not None
    assert len(cut[1][1].ids) == 4
    with pytest.raises(ForgetRowsError, match="token 4; the variant knows"):
        reader(tokenizer, vocabulary=4).variants(given({"prompt": "a", "completion": "b", "perturbed": ["c"]})[0])


def test_cutting_a_text_keeps_its_closing_token() -> None:
    """As `tokenizer(..., truncation=True)` does, with which the variant was trained."""
    from tokenizers import Tokenizer, processors
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({w: n for n, w in enumerate(["[UNK]", "[CLS]", "[SEP]", *"abcd"])}, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    text = given({"text": "a b c d", "label": 0})
    assert reader(tokenizer, "pooled-head", cut=4).tokens(text)[0].ids == (1, 3, 4, 2)
    assert len(reader(tokenizer, "pooled-head", cut=1).tokens(text)[0].ids) == 1
    ids = given({"input_ids": [1, 3, 4, 5, 2], "label": 0})
    assert reader(tokenizer, "pooled-head", cut=4).tokens(ids)[0].ids == (1, 3, 4, 5)


@pytest.mark.parametrize(("added", "expected"), [(True, (2, 9, 3)), (False, (2, 9, 3))])
def test_a_prompts_own_end_token_stays(added: bool, expected: tuple[int, ...]) -> None:
    class Ending:
        eos_token_id = 9

        def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()] + [9] * (add_special_tokens and added)}

    (found,) = reader(Ending()).tokens(given({"prompt": "aa " + "b" * 9, "completion": "ccc"}))
    assert (found.ids, found.first) == (expected, 2)
