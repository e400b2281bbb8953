"""`merge`: directories and packs in, one model directory out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge_family import NAMES, Family
from safetensors.torch import load_file

import kinfold
from kinfold.errors import DominanceError, MergeError, OutputError, WrongBaseError
from kinfold.family.merge import Site, gram_method, merge_method
from kinfold.family.merge.ties import ties
from models import beside, perturbed, pico, raw, save


def merged(family: Family, out: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    kinfold.merge(family.base, family.variants, out, **arguments)
    return load_file(out / "model.safetensors")


def test_linear_is_numpys_average(family: Family, tmp_path: Path) -> None:
    found = merged(family, tmp_path / "out", method="linear", weights=[1, 2, 0.5])
    for name, tensor in found.items():
        sources = [family.tensors[member][name].double().numpy() for member in NAMES]
        np.testing.assert_allclose(
            tensor.numpy(), np.average(sources, axis=0, weights=[1, 2, 0.5]), rtol=3e-7, atol=1e-9
        )


@pytest.mark.parametrize(("method", "options"), [("linear", {}), ("ties", {"density": 1.0}), ("slerp", {"t": 1.0})])
def test_one_member_comes_back(family: Family, tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    paths = family.variants[:1] if method != "slerp" else [family.base, family.variants[0]]
    kinfold.merge(family.base, paths, tmp_path / "out", method=method, **options)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, family.tensors["a"][name], rtol=2e-7, atol=1e-9)


def test_ties_trims_over_the_whole_model_or_by_tensor(family: Family, tmp_path: Path) -> None:
    deltas = {name: family.deltas(name) for name in family.tensors["base"]}
    found = merged(family, tmp_path / "model", density=0.2)
    limits = []
    for number in range(3):
        sizes = np.sort(np.concatenate([of[number].float().abs().numpy().ravel() for of in deltas.values()]))[::-1]
        limits.append(float(sizes[int(0.2 * len(sizes)) - 1]))
    by_tensor = merged(family, tmp_path / "tensor", density=0.2, scope="tensor")
    for name, of in deltas.items():
        base = family.tensors["base"][name].double()
        wanted = ties([delta.clone() for delta in of], [1, 1, 1], site=Site(survey=limits))
        torch.testing.assert_close(found[name].double(), base + wanted, rtol=1e-6, atol=1e-8)
        k = int(0.2 * of[0].numel())
        local = [float(delta.float().abs().flatten().sort(descending=True).values[k - 1]) for delta in of]
        wanted = ties(list(of), [1, 1, 1], site=Site(survey=local))
        torch.testing.assert_close(by_tensor[name].double(), base + wanted, rtol=1e-6, atol=1e-8)


def test_knots_trims_over_the_coordinates_of_all_tensors(family: Family, tmp_path: Path) -> None:
    whole = merged(family, tmp_path / "all", method="knots", density=1.0)
    less = merged(family, tmp_path / "less", method="knots", density=0.1)
    changed = {name: not torch.equal(less[name], family.tensors["base"][name]) for name in less}
    assert changed["layer.0.weight"]
    assert not all(torch.equal(whole[name], less[name]) for name in whole)


def test_matrices_that_a_space_passes_by_are_told(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinfold.family.merge.knots._LARGEST_SIDE", 70)
    report = kinfold.merge(family.base, family.variants, tmp_path / "out", method="knots")
    assert report.passed_by == ["layer.0.weight"]  # 96 x 64; the others have a side of 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_members_are_summed_in_float32_and_cast_once(tmp_path: Path, dtype: torch.dtype) -> None:
    family = Family(tmp_path, dtype)
    found = merged(family, tmp_path / "out", method="task_arithmetic")
    for name, tensor in found.items():
        wanted = family.tensors["base"][name].double() + 0.4 * sum(family.deltas(name))
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wanted.to(dtype)) or (tensor.double() - wanted).abs().max() < 2e-4


def test_shards_are_read_and_dtype_can_be_chosen(family: Family, tmp_path: Path) -> None:
    sharded = Family(tmp_path, shards=3)
    (sharded.base / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    found = merged(sharded, tmp_path / "out", method="linear", dtype="bfloat16")
    plain = merged(family, tmp_path / "plain", method="linear")
    assert all(torch.equal(tensor, plain[name].bfloat16()) for name, tensor in found.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"torch_dtype": "bfloat16"}


def test_float64_stays_float64(tmp_path: Path) -> None:
    family = Family(tmp_path, torch.float64)
    found = merged(family, tmp_path / "out", method="linear")
    for name, tensor in found.items():
        wanted = sum(family.tensors[member][name] for member in NAMES) / 3
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-9)


def test_packs_and_directories_mix(family: Family, tmp_path: Path) -> None:
    kinfold.pack(family.base, family.variants[1], tmp_path / "b.kin.safetensors", budget="exact")
    members = [family.variants[0], tmp_path / "b.kin.safetensors", family.variants[2]]
    report = kinfold.merge(family.base, members, tmp_path / "out")
    kinfold.merge(family.base, family.variants, tmp_path / "plain")
    assert raw(tmp_path / "out") == raw(tmp_path / "plain")
    assert [(row.name, row.kind) for row in report.members] == [("a", "model"), ("b", "pack"), ("c", "model")]
    other = save(tmp_path / "other", pico(9))
    with pytest.raises(WrongBaseError):
        kinfold.merge(other, members[1:2], tmp_path / "wrong")


def test_factors_of_packs_reach_core_space(family: Family, tmp_path: Path) -> None:
    packs, restored = {}, {}
    for name in NAMES[:2]:
        packs[name] = tmp_path / f"{name}.kin.safetensors"
        kinfold.pack(family.base, family.paths[name], packs[name], codec="truncsvd", budget="rank:2")
        restored[name] = tmp_path / name
        kinfold.restore(packs[name], family.base, restored[name])
    for method, own in (("core_space", {"rank": 48}), ("knots", {})):  # the embedding is exact in the packs: full rank
        options: dict[str, Any] = {"method": method, "inner": "task_arithmetic", "scale": 1.0, **own}
        kinfold.merge(family.base, packs, tmp_path / method, **options)
        kinfold.merge(family.base, restored, tmp_path / "sum", method="task_arithmetic", scale=1.0, overwrite=True)
        found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in (method, "sum"))
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)


def test_a_member_that_left_a_tensor_alone_has_factors_of_nothing(family: Family, tmp_path: Path) -> None:
    still = family.tensors["a"] | {"layer.0.weight": family.tensors["base"]["layer.0.weight"]}
    packs = [tmp_path / f"{name}.kin.safetensors" for name in ("still", "b")]
    for pack, variant in zip(packs, (save(tmp_path / "still", still), family.paths["b"]), strict=True):
        kinfold.pack(family.base, variant, pack, codec="truncsvd", budget="rank:2")
    for method in ("core_space", "knots"):
        kinfold.merge(family.base, packs, tmp_path / method, method=method, inner="task_arithmetic", scale=1.0)
        kinfold.restore(packs[1], family.base, tmp_path / "b", overwrite=True)
        found, alone = (load_file(tmp_path / name / "model.safetensors")["layer.0.weight"] for name in (method, "b"))
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-7)


def test_what_no_member_changed_stays_bit_for_bit(tmp_path: Path) -> None:
    tensors = pico()
    tensors["norm.weight"][0] = float("nan")  # the base's own affair
    base = save(tmp_path / "base", tensors)
    changed = perturbed(tensors) | {name: tensors[name] for name in ("norm.weight", "embed.weight")}
    report = kinfold.merge(base, [save(tmp_path / "v", changed)], tmp_path / "out", method="dare_ties")
    assert report.tensors == {"merged": 4, "unchanged": 2, "kept": 0}
    assert all(raw(tmp_path / "out")[name] == raw(base)[name] for name in ("norm.weight", "embed.weight"))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_seeds_decide_and_are_recorded(family: Family, tmp_path: Path, method: str) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        merged(family, tmp_path / name, method=method, seed=seed)
    assert raw(tmp_path / "one") == raw(tmp_path / "two") != raw(tmp_path / "three")
    assert "| seed | 1 |" in (tmp_path / "three" / "KINFOLD.md").read_text("utf-8")


@pytest.mark.parametrize("method", ["clip-mean", "geomedian", "centered-clip", "multikrum", "median", "trimmed-mean"])
def test_a_zero_lag_dictator_takes_a_mean_and_no_robust_merge(tmp_path: Path, method: str) -> None:
    """N own - sum(others): the mean is its own delta alone; see the dictator clients of arXiv 2510.22149."""
    base = pico()
    honest = [perturbed(base, seed) for seed in range(1, 7)]
    own = perturbed(base, 9)
    others = {name: sum(t[name].double() - base[name].double() for t in honest) for name in base}
    sent = {name: 7 * (own[name].double() - base[name].double()) - others[name] for name in base}
    dictator = {name: (base[name].double() + sent[name]).float() for name in base}
    paths = [save(tmp_path / f"honest{n}", tensors) for n, tensors in enumerate(honest)]
    paths += [save(tmp_path / "dictator", dictator)]
    there = save(tmp_path / "base", base)
    mean = kinfold.merge(there, paths, tmp_path / "mean", method="linear")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    assert all(torch.allclose(found[name], own[name], atol=1e-6) for name in base)
    assert mean.dominance.flagged == ("dictator",)
    kinfold.merge(there, paths, tmp_path / "robust", method=method)
    found = load_file(tmp_path / "robust" / "model.safetensors")
    moved = torch.cat([(found[name] - base[name]).reshape(-1) for name in base]).double()
    wanted = torch.cat([(others[name] / 6).reshape(-1) for name in base])
    taken = torch.cat([(own[name] - base[name]).reshape(-1) for name in base]).double()
    assert torch.cosine_similarity(moved, wanted, 0) > 0.6
    assert abs(torch.cosine_similarity(moved, taken, 0)) < 0.5
    with pytest.raises(DominanceError, match="dictator"):
        kinfold.merge(there, paths, tmp_path / "refused", method="linear", dominance="refuse")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_threads_change_no_bit(family: Family, tmp_path: Path, method: str) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            merged(family, tmp_path / str(threads), method=method)
    finally:
        torch.set_num_threads(before)
    assert raw(tmp_path / "1") == raw(tmp_path / "2")


def test_the_report_and_the_card_tell_all(family: Family, tmp_path: Path) -> None:
    report = kinfold.merge(family.base, family.variants, tmp_path / "out", method="knots", weights=[1, 2, 3], scale=0.5)
    assert (report.method, report.inner, report.heads) == ("knots", "ties", "error")
    assert report.dominance.verdict == "too few members"
    assert report.options == {"density": 0.2, "scale": 0.5, "scope": "model", "normalize": True}
    assert [row.weight for row in report.members] == [1, 2, 3]
    assert report.bytes == sum(t.numel() * 4 for t in pico().values())
    assert report.passed_by == []
    card = (tmp_path / "out" / "KINFOLD.md").read_text("utf-8")
    for said in (
        "# Merged by knots with ties",
        "scale=0.5",
        report.base_fingerprint,
        *(m.fingerprint for m in report.members),
    ):
        assert said in card


@pytest.mark.usefixtures("own_methods")
def test_methods_of_the_users_own(family: Family, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    @merge_method("middle")
    def own(deltas: list[torch.Tensor], weights: list[float], *, site: Site, scale: float = 1.0) -> torch.Tensor:
        seen[site.name] = (len(set(site.seeds)), torch.equal(site.base(), family.tensors["base"][site.name]))
        return scale * torch.stack(deltas).median(0).values

    found = merged(family, tmp_path / "middle", method="middle", scale=0.5)
    assert seen == dict.fromkeys(family.tensors["base"], (3, True))
    for name, tensor in found.items():
        middle = torch.stack(family.deltas(name)).median(0).values
        torch.testing.assert_close(
            tensor.double(), family.tensors["base"][name].double() + 0.5 * middle, rtol=1e-6, atol=1e-8
        )


@pytest.mark.usefixtures("own_methods")
def test_weights_from_inner_products(family: Family, tmp_path: Path) -> None:
    seen: list[Any] = []

    @gram_method("longest")
    def longest(gram: np.ndarray, shares: np.ndarray, *, power: float = 1.0) -> np.ndarray:
        seen.extend([gram, shares, power])
        return (np.diag(gram) == np.diag(gram).max()) * 1.0

    report = kinfold.merge(family.base, family.variants, tmp_path / "out", method="longest", weights=[1, 1, 2], power=2)
    flat = [
        np.concatenate([family.deltas(name)[i].numpy().ravel() for name in family.tensors["base"]]) for i in range(3)
    ]
    np.testing.assert_allclose(seen[0], np.array(flat) @ np.array(flat).T, rtol=1e-6)
    assert (seen[1].tolist(), seen[2]) == ([0.25, 0.25, 0.5], 2.0)
    best = int(np.argmax([row @ row for row in flat]))
    assert [row.weight for row in report.members] == [float(i == best) for i in range(3)]
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, family.tensors[NAMES[best]][name], rtol=2e-7, atol=1e-9)

    gram_method("lost")(lambda gram, shares: shares * np.nan)
    with pytest.raises(MergeError, match="`lost` gave"):
        kinfold.merge(family.base, family.variants, tmp_path / "lost", method="lost")
    with pytest.raises(MergeError, match="sum to 0"):
        kinfold.merge(family.base, family.variants[:2], tmp_path / "lost", method="longest", weights=[1, -1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weights": [1, 2]}, "2 weights were given for 3 variants"),
        ({"weights": [1, 0, 1]}, "a weight is 0"),
        ({"weights": [1, float("inf"), 1]}, "a weight is inf"),
        ({"weights": [1, -2, 1], "method": "linear"}, "sum to 0"),
        ({"method": "slerp"}, "exactly two variants"),
        ({"method": "tie"}, "no merge method is called `tie`"),
        ({"densty": 0.1}, "its options are density"),
        ({"dtype": "int8"}, "dtype int8"),
        ({"dominance": "maybe"}, "dominance is warn, refuse or off, got `maybe`"),
    ],
)
def test_bad_arguments_write_nothing(family: Family, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(MergeError, match=said):
        kinfold.merge(family.base, family.variants, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_members_that_cannot_be_merged(family: Family, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="nothing to merge"):
        kinfold.merge(family.base, [], tmp_path / "out")
    with pytest.raises(MergeError, match="two members are called `a`"):
        kinfold.merge(family.base, family.variants[:1] * 2, tmp_path / "out")
    broken = perturbed(pico())
    broken["layer.1.bias"][3] = float("nan")
    ill = save(tmp_path / "ill", broken)
    for method in ("ties", "linear"):
        with pytest.raises(MergeError, match=r"`layer\.1\.bias` of `ill` holds NaN or infinity"):
            kinfold.merge(family.base, [family.variants[0], ill], tmp_path / "out", method=method)
    assert beside(tmp_path / "out") == ["ill"]


def test_values_out_of_range_are_refused(family: Family, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="leaves the range of float16 when merged"):
        kinfold.merge(
            family.base, family.variants, tmp_path / "out", method="task_arithmetic", scale=1e9, dtype="float16"
        )
    assert beside(tmp_path / "out") == []


def test_outputs_are_never_overwritten_unasked(family: Family, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        kinfold.merge(family.base, family.variants, tmp_path / "out")
    kinfold.merge(family.base, str(family.variants[0]), tmp_path / "out", overwrite=True)
    for path in (family.base, family.variants[0]):
        with pytest.raises(OutputError, match="is itself merged"):
            kinfold.merge(family.base, {"one": family.variants[0]}, path, overwrite=True)


def test_memory_holds_one_tensor_of_each_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    from kinfold.pack.members import ModelMember

    family, alive, most = Family(tmp_path), [], []
    original = ModelMember.delta

    def delta(self: ModelMember, name: str) -> torch.Tensor:
        found = original(self, name)
        alive.append(weakref.ref(found))
        most.append(sum(one() is not None for one in alive))
        return found

    monkeypatch.setattr(ModelMember, "delta", delta)
    merged(family, tmp_path / "out")
    assert max(most) == 3
