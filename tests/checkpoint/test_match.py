"""Which tensor meets which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kinfold.checkpoint import Checkpoint, Match, digests, match
from kinfold.errors import CheckpointError
from models import Tensors, perturbed, pico, save


def matched(folder: Path, base: Tensors, variant: Tensors, *, strict: bool = True) -> Match:
    a, b = (Checkpoint.open(save(folder / name, tensors)) for name, tensors in (("base", base), ("variant", variant)))
    return match(a, b, digests(a), digests(b), strict=strict)


def statuses(result: Match) -> dict[str, str]:
    return {pair.name: pair.status for pair in result.pairs}


def test_equal_changed_new_and_absent(tmp_path: Path) -> None:
    base = pico()
    variant = perturbed(base) | {"norm.weight": base["norm.weight"], "head.weight": torch.randn(3, 64)}
    del variant["layer.0.bias"]
    result = matched(tmp_path, base, variant)
    assert statuses(result) == {
        "embed.weight": "changed",
        "head.weight": "new",
        "layer.0.weight": "changed",
        "layer.1.bias": "changed",
        "layer.1.weight": "changed",
        "norm.weight": "equal",
    }
    assert result.absent == ["layer.0.bias"]
    assert result.prefix == ("", "")
    assert result.unlike == []
    assert (result.count("changed"), result.count("equal"), result.count("new")) == (4, 1, 1)


@pytest.mark.parametrize(("rows", "common"), [(70, 64), (60, 60)])
def test_a_resized_vocabulary_shares_its_leading_rows(tmp_path: Path, rows: int, common: int) -> None:
    base = pico()
    result = matched(tmp_path, base, perturbed(base) | {"embed.weight": torch.randn(rows, 48)})
    (pair,) = [pair for pair in result.pairs if pair.name == "embed.weight"]
    assert (pair.status, pair.base, pair.rows) == ("resized", "embed.weight", common)


def test_a_vector_of_another_length_is_new_and_said_to_be_unlike(tmp_path: Path) -> None:
    base = pico()
    result = matched(tmp_path, base, base | {"layer.0.bias": torch.randn(97), "layer.1.weight": torch.randn(64, 90)})
    assert statuses(result)["layer.0.bias"] == "new"
    assert result.unlike == ["layer.0.bias", "layer.1.weight"]
    assert result.absent == []


@pytest.mark.parametrize(("own", "other"), [("bert.", ""), ("", "bert.")], ids=["added", "dropped"])
def test_a_prefix_on_one_side_is_found(tmp_path: Path, own: str, other: str) -> None:
    tensors = pico()
    base = {other + name: tensor for name, tensor in tensors.items()}
    variant = {own + name: tensor for name, tensor in perturbed(tensors).items()}
    variant["classifier.weight"] = torch.randn(3, 64)
    result = matched(tmp_path, base, variant)
    assert result.prefix == (own, other)
    assert {pair.name: pair.base for pair in result.pairs if pair.base} == {own + n: other + n for n in tensors}
    assert [pair.name for pair in result.pairs if pair.status == "new"] == ["classifier.weight"]


def test_a_tied_copy_is_an_alias_of_the_first(tmp_path: Path) -> None:
    base = pico()
    variant = perturbed(base)
    variant["lm_head.weight"] = variant["embed.weight"].clone()
    (pair,) = [pair for pair in matched(tmp_path, base, variant).pairs if pair.name == "lm_head.weight"]
    assert (pair.status, pair.base) == ("alias", "embed.weight")


def test_equal_bytes_of_another_shape_or_dtype_are_no_alias(tmp_path: Path) -> None:
    base = pico()
    same = base["embed.weight"]
    extra = {"as_ints": same.clone().view(torch.int32), "turned": same.clone().reshape(48, 64)}
    found = statuses(matched(tmp_path, base, perturbed(base) | {"embed.weight": base["embed.weight"]} | extra))
    assert (found["as_ints"], found["turned"]) == ("new", "new")


def test_a_tensor_too_small_for_an_alias_is_kept(tmp_path: Path) -> None:
    base = pico()
    extra = {"a": torch.ones(16), "b": torch.ones(16), "c": torch.ones(17), "d": torch.ones(17)}  # 64 and 68 bytes
    found = statuses(matched(tmp_path, base, perturbed(base) | extra))
    assert [found[name] for name in "abcd"] == ["new", "new", "new", "alias"]


def test_floats_of_two_dtypes_meet_and_integers_do_not(tmp_path: Path) -> None:
    base = pico() | {"steps": torch.arange(5, dtype=torch.int32)}
    variant = perturbed(pico()) | {"steps": torch.arange(5)}
    variant["layer.0.bias"] = variant["layer.0.bias"].bfloat16()
    found = statuses(matched(tmp_path, base, variant))
    assert (found["layer.0.bias"], found["steps"]) == ("changed", "new")


def test_another_architecture_is_refused_in_the_users_words(tmp_path: Path) -> None:
    base, variant = pico(), pico(shapes={name: [2 * side for side in t.shape] for name, t in pico().items()})
    a = Checkpoint.open(save(tmp_path / "base", base, {"architectures": ["Small"]}))
    b = Checkpoint.open(save(tmp_path / "variant", variant, {"architectures": ["Large"]}))
    with pytest.raises(CheckpointError) as caught:
        match(a, b, digests(a), digests(b))
    message = str(caught.value)
    assert f"`{tmp_path / 'variant'}` (Large) is no fine-tune of `{tmp_path / 'base'}` (Small)" in message
    assert f"0 of {sum(t.numel() * 4 for t in variant.values())} bytes have a counterpart" in message
    assert "`embed.weight` is [128, 96] in the variant and [64, 48] in the base" in message
    assert caught.value.hint == f"kinfold diff {tmp_path / 'base'} {tmp_path / 'variant'}"
    assert match(a, b, digests(a), digests(b), strict=False).count("new") == len(variant)


def test_names_without_any_counterpart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="and absent in the base"):
        matched(tmp_path, pico(), {f"x{number}": tensor for number, tensor in enumerate(pico(1).values())})


@pytest.mark.parametrize(("extra", "fits"), [(100, True), (102, False)])
def test_half_of_the_bytes_must_have_a_counterpart(tmp_path: Path, extra: int, fits: bool) -> None:
    base = {"a.x": torch.zeros(101)}
    variant = {"a.x": torch.ones(101), "z": torch.ones(extra)}
    if fits:
        assert matched(tmp_path, base, variant).count("new") == 1
    else:
        with pytest.raises(CheckpointError, match="only 404 of 812 bytes have a counterpart; `z`"):
            matched(tmp_path, base, variant)
