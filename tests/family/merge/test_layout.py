"""Task heads, resized and missing tensors, prefixes: what a merged model has of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

import kinfold
from kinfold.errors import MergeError
from kinfold.family.merge.layout import dtype_name
from models import Pair, finetuned, perturbed, pico, save


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base; `a` with a head and more rows in the embedding; `b` without the norm."""
    folder = tmp_path_factory.mktemp("heads")
    base = pico() | {"steps": torch.arange(4)}
    a, b = perturbed(pico(), 1) | {"steps": torch.arange(4)}, perturbed(pico(), 2) | {"steps": torch.arange(4)}
    a["head.weight"] = torch.ones(3, 64)
    a["embed.weight"] = torch.cat([a["embed.weight"], torch.ones(2, 48)])
    del b["norm.weight"]
    for name, tensors in (("base", base), ("a", a), ("b", b)):
        save(folder / name, tensors, {"of": name})
    return folder


def variants(heads: Path) -> list[Path]:
    return [heads / "a", heads / "b"]


def test_error_lists_them_and_says_what_to_do(heads: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError) as error:
        kinfold.merge(heads / "base", variants(heads), tmp_path / "out")
    for said in ("`head.weight` F32[3, 64] of `a`", "`embed.weight` F32[66, 48] of `a`", "`norm.weight` is not in `b`"):
        assert said in str(error.value)
    assert "--heads base" in error.value.hint
    assert "--heads a" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_long_list_is_cut(heads: Path, tmp_path: Path) -> None:
    many = save(
        tmp_path / "many",
        perturbed(pico()) | {f"new.{n}": torch.ones(2) for n in range(9)} | {"steps": torch.arange(4)},
    )
    with pytest.raises(MergeError, match="and 3 more"):
        kinfold.merge(heads / "base", [many], tmp_path / "out")


def test_base_keeps_the_bases_and_leaves_new_ones_out(heads: Path, tmp_path: Path) -> None:
    report = kinfold.merge(heads / "base", variants(heads), tmp_path / "out", method="linear", heads="base")
    found, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(heads / "base" / "model.safetensors")
    assert found.keys() == base.keys()
    assert report.kept == ["embed.weight", "norm.weight", "steps"]
    assert all(torch.equal(found[name], base[name]) for name in report.kept)
    assert report.left_out == ["a/embed.weight", "a/head.weight"]
    sources = [load_file(path / "model.safetensors") for path in variants(heads)]
    torch.testing.assert_close(found["layer.0.bias"], (sources[0]["layer.0.bias"] + sources[1]["layer.0.bias"]) / 2)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["of"] == "base"


def test_a_name_takes_that_members(heads: Path, tmp_path: Path) -> None:
    report = kinfold.merge(heads / "base", variants(heads), tmp_path / "out", method="linear", heads="a")
    found, a = load_file(tmp_path / "out" / "model.safetensors"), load_file(heads / "a" / "model.safetensors")
    assert found.keys() == a.keys()
    assert report.kept == ["embed.weight", "head.weight", "norm.weight", "steps"]
    assert all(torch.equal(found[name], a[name]) for name in report.kept)
    assert not torch.equal(found["layer.0.weight"], a["layer.0.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["of"] == "a"

    report = kinfold.merge(heads / "base", variants(heads), tmp_path / "two", method="linear", heads="b")
    assert "norm.weight" not in load_file(tmp_path / "two" / "model.safetensors")
    assert report.left_out == ["a/embed.weight", "a/head.weight", "base/norm.weight"]


def test_an_unknown_name_is_told_the_members(heads: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="heads='bas' is no member; it is error, base, or one of a, b") as error:
        kinfold.merge(heads / "base", variants(heads), tmp_path / "out", heads="bas")
    assert error.value.hint == "--heads base"


def test_a_prefix_is_the_members_own(classifier_pair: Pair, tmp_path: Path) -> None:
    base = AutoModel.from_pretrained(classifier_pair.base)
    bare = finetuned(base, tmp_path / "bare", seed=5)
    members = {"bare": bare, "task": classifier_pair.variant}
    report = kinfold.merge(classifier_pair.base, members, tmp_path / "out", method="linear", heads="task")
    merged, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert report.tensors["kept"] == 2
    task = AutoModelForSequenceClassification.from_pretrained(classifier_pair.variant)
    assert torch.equal(merged.classifier.weight, task.classifier.weight)
    one, two = AutoModel.from_pretrained(bare).state_dict(), task.bert.state_dict()
    for name, tensor in merged.bert.state_dict().items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2 if tensor.is_floating_point() else one[name])

    kinfold.merge(classifier_pair.base, members, tmp_path / "plain", method="linear", heads="base")
    plain = AutoModel.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in merged.bert.state_dict().items())


def test_dtypes_by_both_names() -> None:
    assert dtype_name(None) is None
    assert [dtype_name(one) for one in ("bfloat16", "torch.float16", torch.float32)] == ["BF16", "F16", "F32"]
    for bad in ("int8", "nothing", torch.int8, "float8_e4m3fn"):
        with pytest.raises(MergeError, match="is one of float64, float32, float16, bfloat16"):
            dtype_name(bad)
