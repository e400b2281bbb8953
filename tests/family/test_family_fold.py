"""`fold` end to end on pico checkpoints: what comes back, what it costs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import METHODS, Family
from safetensors.torch import load_file
from zstandard import ZstdDecompressor

import kinfold
from adapters import make
from forge import take_apart
from kinfold.family.file import FamilyFile
from kinfold.family.fold import fold
from kinfold.family.unfold import unfold
from kinfold.pack.members import PackMember
from models import Pair, Tensors, bert, finetuned, raw, reference_bytes, save


def tensors(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


def error(base: Path, variant: Path, found: Path) -> float:
    """Relative, over all floating tensors of the base's shape, in float64."""
    there, wanted, got = tensors(base), tensors(variant), tensors(found)
    missed = energy = 0.0
    for name, value in wanted.items():
        if name in there and there[name].shape == value.shape and value.is_floating_point():
            missed += float((value.double() - got[name].double()).square().sum())
            energy += float((value.double() - there[name].double()).square().sum())
    return (missed / energy) ** 0.5


@pytest.mark.parametrize("key", METHODS)
def test_every_member_comes_back_in_shape(trees: Family, tmp_path: Path, key: str) -> None:
    errors = {row.name: row.error for row in trees.reports[key].members}
    for name, variant in trees.members.items():
        unfold(trees.files[key], name, tmp_path / name, base=trees.base)
        found, wanted = raw(tmp_path / name), raw(variant)
        assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in wanted.items()}
        assert (tmp_path / name / "config.json").read_bytes() == (variant / "config.json").read_bytes()
        assert error(trees.base, variant, tmp_path / name) == pytest.approx(errors[name], rel=0.02, abs=1e-3)
        assert errors[name] < 0.4


@pytest.mark.parametrize("key", METHODS)
def test_bytes_are_those_of_the_file_and_within_the_budget(trees: Family, key: str) -> None:
    report = trees.reports[key]
    assert report.file_bytes == trees.files[key].stat().st_size == sum(report.bytes.values())
    assert report.kept_bytes == sum(reference_bytes(trees.base, variant) for variant in trees.members.values())
    assert key == "directions" or report.file_bytes <= report.kept_bytes // 3  # that takes what it takes
    rows = {layer.tensor: layer.shared_bytes for layer in report.layers}
    assert sum(rows.values()) == report.bytes["shared"]
    assert bool(rows) == (key not in ("truncsvd", "packs"))
    assert [row.error for row in report.members] == sorted((row.error for row in report.members), reverse=True)


def test_the_method_is_in_the_report(trees: Family) -> None:
    names = {key: report.method for key, report in trees.reports.items()}
    assert names == {key: key for key in METHODS} | {"directions": "rmm", "paper": "rmm"}
    assert {layer.codec for layer in trees.reports["jd"].layers} == {"jd"}
    assert {layer.params["p"] for layer in trees.reports["paper"].layers} == {1}
    assert {layer.params["w"] for layer in trees.reports["paper"].layers} == {16}
    codecs = [set(row.codecs) for row in trees.reports["truncsvd"].members]
    assert all(kinds <= {"truncsvd", "exact", "rtn"} for kinds in codecs)
    assert all(kinds <= {"fold", "exact", "rtn"} for kinds in [set(r.codecs) for r in trees.reports["packs"].members])


def test_an_unfolded_member_is_the_base_and_what_the_file_says(trees: Family, tmp_path: Path) -> None:
    """32-bit sections read by numpy alone: Z = mean + basis coefficients, delta = s^2 A C^T."""
    _, manifest, entries = take_apart(trees.files["directions"])
    base = tensors(trees.base)
    for name in trees.members:
        unfold(trees.files["directions"], name, tmp_path / name, base=trees.base)
        found = tensors(tmp_path / name)
        own = json.loads(ZstdDecompressor().decompress(entries[f"{name}#manifest"]))
        position, seen = 0, 0
        for unit in own["units"]:
            data = entries[f"{name}#payloads"][position : position + unit["bytes"]]
            position += unit["bytes"]
            if unit["codec"] != "rmm":
                continue
            tensor = unit["pieces"][0]["base"]
            layer = next(layer for layer in manifest["shared"] if layer["tensor"] == tensor)
            (m, d), r, p = layer["shape"], layer["params"]["r"], layer["params"]["p"]
            stored = np.frombuffer(entries[f"{tensor}#rmm"], "<f4").astype(float)
            mean, basis = stored[: (m + d) * r].reshape(m + d, r), stored[(m + d) * r :].reshape(m + d, r, p)
            z = mean + np.einsum("xrp,xp->xr", basis, np.frombuffer(data, "<f4").reshape(m + d, p))
            delta = z[:m] @ z[m:].T * unit.get("params", {}).get("s", 1.0) ** 2
            assert np.allclose(found[tensor].double().numpy(), base[tensor].double().numpy() + delta, rtol=0, atol=1e-7)
            seen += 1
        assert seen == 2


def test_truncated_members_are_as_near_as_numpys_svd_of_that_rank(trees: Family, tmp_path: Path) -> None:
    """At 8 bits a value a few percent are lost to rounding."""
    base = tensors(trees.base)
    for name, variant in trees.members.items():
        part = FamilyFile.open(trees.files["truncsvd"]).part(name)
        unfold(trees.files["truncsvd"], name, tmp_path / name, base=trees.base)
        found, wanted = tensors(tmp_path / name), tensors(variant)
        for unit in part.manifest.units:
            if unit.codec != "truncsvd" or unit.params["w"] != 8:
                continue
            tensor = unit.pieces[0].name
            delta = (wanted[tensor].double() - base[tensor].double()).numpy()
            s = np.linalg.svd(delta, compute_uv=False)
            tail = (s[unit.params["k"] :] ** 2).sum()
            missed = ((found[tensor].double() - wanted[tensor].double()).numpy() ** 2).sum()
            assert tail * 0.999 < missed < tail + 2e-3 * (s**2).sum()


def test_order_and_spelling_of_the_members_change_no_byte(trees: Family, tmp_path: Path) -> None:
    backwards = dict(reversed(trees.members.items()))
    for key, given in (
        ("rmm", backwards),
        ("mixed", list(backwards.values())),
        ("packs", [*map(str, backwards.values())]),
    ):
        fold(given, tmp_path / key, base=trees.base, **METHODS[key])
        assert (tmp_path / key).read_bytes() == trees.files[key].read_bytes()


@pytest.mark.parametrize("key", ["rmm", "jd", "truncsvd", "mixed", "packs"])
def test_at_least_97_percent_of_a_budget_is_used(middling: Family, tmp_path: Path, key: str) -> None:
    out = tmp_path / "family"
    report = fold(middling.members, out, base=middling.base, budget="1/50", **METHODS[key])
    budget = sum(reference_bytes(middling.base, variant) for variant in middling.members.values()) // 50
    assert report.file_bytes == out.stat().st_size
    assert 0.97 * budget <= report.file_bytes <= budget


def test_auto_keeps_adapters_as_low_rank(tmp_path: Path) -> None:
    """But as packs where the low-rank layers would not fit, or a model is among them."""
    model = bert()
    model.save_pretrained(tmp_path / "base")
    for seed, name in enumerate(("a", "b")):
        make(model, tmp_path / name, seed, target_modules=["query", "value"], r=4)
    adapters = [tmp_path / "a", tmp_path / "b"]
    finetuned(model, tmp_path / "full")
    given: dict[str, Any] = {"base": tmp_path / "base", "budget": "1/1", "dominance": "off"}
    told = fold(adapters, tmp_path / "adapters.kin", **given)
    assert told.method == "mixed"
    assert fold(adapters, tmp_path / "asked.kin", **given, low_rank=True).members == told.members
    small = fold(adapters, tmp_path / "small.kin", **given | {"budget": "1/2"})
    assert (small.method, FamilyFile.open(tmp_path / "small.kin").manifest.method) == ("packs", "packs")
    assert fold([*adapters, tmp_path / "full"], tmp_path / "both.kin", **given).method == "packs"


def test_more_bytes_lose_less(trees: Family, tmp_path: Path) -> None:
    """And the mixed plan is about as good as the best single method, or better."""
    worst = []
    for budget in (10000, 18000):
        report = fold(trees.members, tmp_path / str(budget), base=trees.base, budget=budget, low_rank=True)
        assert report.file_bytes <= budget
        worst.append(report.members[0].error)
        means = {name: other["mean_error"] for name, other in report.others.items()}
        assert set(means) == {"rmm", "jd", "truncsvd", "mixed"}
        assert means["mixed"] <= min(means.values()) * 1.02
    assert worst[0] > worst[1] > trees.reports["mixed"].members[0].error


def test_one_member(trees: Family, tmp_path: Path) -> None:
    for key in ("rmm", "jd", "truncsvd", "mixed", "packs"):
        report = fold({"only": trees.members["ash"]}, tmp_path / key, base=trees.base, **METHODS[key])
        unfold(tmp_path / key, "only", tmp_path / f"{key}-out", base=trees.base)
        assert error(trees.base, trees.members["ash"], tmp_path / f"{key}-out") < 0.1
        assert report.members[0].name == "only"
        assert report.notes == []
    whole = fold({"o": trees.members["ash"]}, tmp_path / "0", base=trees.base, directions=0, dtype="float32", rank=64)
    assert {layer.params["p"] for layer in whole.layers} == {0}
    unfold(tmp_path / "0", "o", tmp_path / "out", base=trees.base)
    found, wanted = tensors(tmp_path / "out"), tensors(trees.members["ash"])
    assert all(
        torch.allclose(found[name], wanted[name], rtol=0, atol=1e-6)
        for name in wanted
        if name.startswith("layer") and "weight" in name
    )


def test_a_member_that_is_the_base(trees: Family, tmp_path: Path) -> None:
    for key in ("rmm", "mixed", "packs"):
        given = {"plain": trees.base, **trees.members}
        fold(given, tmp_path / key, base=trees.base, **METHODS[key])
        unfold(tmp_path / key, "plain", tmp_path / f"{key}-out", base=trees.base)
        assert raw(tmp_path / f"{key}-out") == raw(trees.base)


def test_members_that_all_are_the_base(trees: Family, tmp_path: Path) -> None:
    for key in ("rmm", "jd", "mixed", "packs"):
        report = fold(
            {"one": trees.base, "two": trees.base}, tmp_path / key, base=trees.base, budget=5000, **METHODS[key]
        )
        assert report.layers == []
        unfold(tmp_path / key, "two", tmp_path / f"{key}-out", base=trees.base)
        assert raw(tmp_path / f"{key}-out") == raw(trees.base)


@pytest.mark.parametrize("key", ["mixed", "jd", "packs", "directions"])
def test_what_is_in_no_layer_comes_back_too(odd: Family, tmp_path: Path, key: str) -> None:
    for name, variant in odd.members.items():
        unfold(odd.files[key], name, tmp_path / name, base=odd.base)
        found, wanted, there = tensors(tmp_path / name), tensors(variant), raw(odd.base)
        bytes_ = raw(tmp_path / name)
        assert {n: t[:2] for n, t in bytes_.items()} == {n: t[:2] for n, t in raw(variant).items()}
        for tensor, entry in raw(variant).items():
            if entry == there.get(tensor) or entry[0] == "I64":
                assert bytes_[tensor] == entry
            else:
                matrix = tensor in ("layer.0.weight", "layer.1.weight")
                close = {"packs": 0.8, "directions": 0.5}.get(key, 0.2) if matrix else 0.2
                delta = wanted[tensor].double()
                if tensor in there and there[tensor][:2] == entry[:2]:
                    delta = delta - tensors(odd.base)[tensor].double()
                assert float((found[tensor].double() - wanted[tensor].double()).norm()) <= close * float(delta.norm())
        assert error(odd.base, variant, tmp_path / name) < 0.45
    grown = raw(tmp_path / "grown")
    assert grown["lm_head.weight"] == grown["embed.weight"]
    assert "gone" not in raw(tmp_path / "headed")


def test_tied_embeddings_and_tokenizer_of_a_llama(llama_pair: Pair, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fold({"one": llama_pair.variant}, tmp_path / "f", base=llama_pair.base, low_rank=True, budget="1/2")
    unfold(tmp_path / "f", "one", tmp_path / "out", base=llama_pair.base)
    wanted = AutoModelForCausalLM.from_pretrained(llama_pair.variant).eval()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()
    rows = torch.arange(20)[None]
    with torch.no_grad():
        there = AutoModelForCausalLM.from_pretrained(llama_pair.base).eval()(rows).logits
        far = float((wanted(rows).logits - there).norm())
        assert float((found(rows).logits - wanted(rows).logits).norm()) < 0.5 * far
    assert AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size == 27


def test_packs_as_members(trees: Family, tmp_path: Path) -> None:
    """Factors of a `truncsvd` pack are taken as they are, mixed with model directories and other ranks."""
    for name, rank in (("ash", 2), ("birch", 5)):
        out = tmp_path / f"{name}.kin.safetensors"
        kinfold.pack(trees.base, trees.members[name], out, codec="truncsvd", budget=f"rank:{rank}")
    kinfold.pack(trees.base, trees.members["cedar"], tmp_path / "cedar", codec="exact")
    given = [tmp_path / "ash.kin.safetensors", tmp_path / "birch.kin.safetensors", tmp_path / "cedar"]
    report = fold(given, tmp_path / "f", base=trees.base, method="truncsvd", budget=27000)
    assert sorted(row.name for row in report.members) == ["ash", "birch", "cedar"]
    assert report.kept_bytes == sum(path.stat().st_size for path in given)
    file = FamilyFile.open(tmp_path / "f")
    for name, rank in (("ash", 4), ("birch", 10)):  # `rank:R` are 32-bit pairs, so 2 R at 16 bits
        ks = [unit.params["k"] for unit in file.part(name).manifest.units if unit.codec == "truncsvd"]
        assert max(ks) <= rank
        kinfold.restore(tmp_path / f"{name}.kin.safetensors", trees.base, tmp_path / f"{name}-pack")
        unfold(tmp_path / "f", name, tmp_path / f"{name}-out", base=trees.base)
        assert error(trees.base, tmp_path / f"{name}-pack", tmp_path / f"{name}-out") < 0.1


def test_factors_wider_than_the_rank_asked_for_are_cut_to_their_leading_components(
    trees: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of a pair come in any order; the first are not the largest."""

    def backwards(member: PackMember, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        a, c = own(member, name)
        return a.flip(1), c.flip(1)

    own: Any = PackMember.factors
    monkeypatch.setattr(PackMember, "factors", backwards)
    kinfold.pack(trees.base, trees.members["ash"], tmp_path / "ash", codec="truncsvd", budget="rank:4")
    kinfold.restore(tmp_path / "ash", trees.base, tmp_path / "whole")
    fold([tmp_path / "ash"], tmp_path / "f", base=trees.base, preset="paper", rank=2, directions=0)
    unfold(tmp_path / "f", "ash", tmp_path / "out", base=trees.base)
    base, wanted, found = tensors(trees.base), tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    for name in ("layer.0.weight", "layer.1.weight"):
        s = np.linalg.svd((wanted[name].double() - base[name].double()).numpy(), compute_uv=False)
        missed = float((wanted[name].double() - found[name].double()).norm())
        assert missed == pytest.approx((s[2:] ** 2).sum() ** 0.5, rel=1e-2)


def test_packs_are_taken_over_byte_for_byte(trees: Family, tmp_path: Path) -> None:
    for codec, budget in (("fold", "1/8"), ("exact", None), ("osd", "1/8")):
        out = tmp_path / f"{codec}.kin.safetensors"
        given: dict[str, Any] = {} if budget is None else {"budget": budget}
        kinfold.pack(trees.base, trees.members["ash"], out, codec=codec, **given)
        fold(
            [out, trees.members["birch"]],
            tmp_path / "f",
            base=trees.base,
            method="packs",
            budget="400kB",
            overwrite=True,
        )
        unfold(tmp_path / "f", codec, tmp_path / "back", base=trees.base, to="pack", overwrite=True)
        assert (tmp_path / "back").read_bytes() == out.read_bytes()


def test_a_pack_above_its_share_is_packed_again(trees: Family, tmp_path: Path) -> None:
    kinfold.pack(trees.base, trees.members["ash"], tmp_path / "ash", codec="exact")
    report = fold([tmp_path / "ash", trees.members["birch"]], tmp_path / "f", base=trees.base, budget=12000)
    assert report.file_bytes <= 12000
    unfold(tmp_path / "f", "ash", tmp_path / "out", base=trees.base)
    assert error(trees.base, trees.members["ash"], tmp_path / "out") < 0.8


def test_a_dry_run_says_what_would_be_and_writes_nothing(trees: Family, tmp_path: Path) -> None:
    report = fold(trees.members, tmp_path / "f", base=trees.base, dry_run=True, method="rmm")
    assert report.file_bytes == trees.reports["rmm"].file_bytes
    assert set(report.others) >= {"rmm", "jd", "truncsvd"}
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_how_much_is_shared(trees: Family, tmp_path: Path) -> None:
    own = {name: tensors(path) for name, path in trees.members.items()}
    base = tensors(trees.base)
    joint = energy = 0.0
    for name in (name for name in base if "weight" in name and base[name].dim() > 1):
        deltas = np.stack([(member[name].double() - base[name].double()).numpy() for member in own.values()])
        joint += 3 * (deltas.mean(0) ** 2).sum()
        energy += (deltas**2).sum()
    assert trees.reports["mixed"].shared_energy == pytest.approx(joint / energy, rel=1e-2)
    assert "almost nothing in common" in trees.reports["mixed"].notes[0]
    twins = fold({"a": trees.members["ash"], "b": trees.members["ash"]}, tmp_path / "f", base=trees.base, method="rmm")
    assert twins.shared_energy == pytest.approx(1, abs=1e-6)
    assert any("share a part" in note for note in twins.notes)


def test_a_rank_above_64_is_not_cut(tmp_path: Path) -> None:
    """Dense deltas of 96 x 80: with rank 80 and every direction, factors at 32 bits give them back."""
    generator = torch.Generator().manual_seed(0)
    base, members = {"w.weight": torch.randn(96, 80, generator=generator)}, {}
    save(tmp_path / "base", base)
    for name in ("a", "b", "c"):
        moved = {"w.weight": base["w.weight"] + 0.1 * torch.randn(96, 80, generator=generator)}
        members[name] = save(tmp_path / name, moved)
    report = fold(members, tmp_path / "f", base=tmp_path / "base", method="rmm", rank=80, directions=1, dtype="float32")
    assert report.layers[0].params["r"] == 80
