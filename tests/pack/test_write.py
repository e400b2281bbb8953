"""Budgets: the whole file stays within them and uses them; the report tells the truth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import kinfold
from kinfold.errors import BudgetError, CodecError, OutputError
from models import beside, perturbed, pico, raw, save

MIDDLING = {  # enough weights for a budget of 1/100 to make sense: 2.5 million
    "embed.weight": (2000, 192),
    **{f"layer.{n}.attn.weight": (192, 192) for n in range(2)},
    **{f"layer.{n}.up.weight": (768, 192) for n in range(2)},
    **{f"layer.{n}.down.weight": (192, 768) for n in range(2)},
    **{f"layer.{n}.norm.weight": (192,) for n in range(4)},
    "conv.weight": (64, 32, 3, 3),
}
CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "osd": ("osd", {}),
    "osd paper": ("osd", {"layout": "paper"}),
    "truncsvd": ("truncsvd", {}),
    "dare": ("dare", {}),
    "magnitude": ("magnitude", {}),
}


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bfloat16 checkpoint of about 1.1 million weights and its fine-tune."""
    folder = tmp_path_factory.mktemp("middling")
    tensors = pico(shapes=MIDDLING, dtype=torch.bfloat16)
    return save(folder / "base", tensors), save(folder / "variant", perturbed(tensors, scale=4e-3))


def reference(base: Path, variant: Path) -> int:
    """2 bytes for every weight in a tensor whose bytes differ from the base's."""
    there = raw(base)
    total = 0
    for name, (dtype, shape, data) in raw(variant).items():
        if there.get(name) != (dtype, shape, data):
            total += 2 * int(torch.Size(shape).numel())
    return total


@pytest.mark.parametrize("budget", ["1/16", "1/40", "50kB", "1/150"])
@pytest.mark.parametrize("name", CODECS)
def test_the_whole_file_fits_and_fills_its_budget(
    tmp_path: Path, middling: tuple[Path, Path], name: str, budget: str
) -> None:
    codec, options = CODECS[name]
    if (name, budget) == ("truncsvd", "1/150"):
        pytest.skip("one rank of the smallest matrix is 5 % of this budget")
    allowed = 50_000 if budget == "50kB" else reference(*middling) // int(budget.removeprefix("1/"))
    out = tmp_path / "v.kin.safetensors"
    report = kinfold.pack(*middling, out, codec=codec, options=options, budget=budget)
    size = out.stat().st_size
    assert size <= allowed
    assert size >= 0.97 * allowed
    assert report.file_bytes == size
    assert beside(out) == ["v.kin.safetensors"]


@pytest.mark.parametrize("codec", ["osd", "magnitude"])
def test_budgets_that_rise_byte_by_byte_are_kept(tmp_path: Path, pair: Any, codec: str) -> None:
    """Neighbouring budgets: rounding to bytes, varints and digits must never spill over."""
    out = tmp_path / "v.kin.safetensors"
    for allowed in range(12_000, 12_040, 5):
        kinfold.pack(*pair, out, codec=codec, budget=allowed, overwrite=True)
        assert 0.97 * allowed <= out.stat().st_size <= allowed


def test_report_agrees_with_the_file(tmp_path: Path, middling: tuple[Path, Path]) -> None:
    out = tmp_path / "v.kin.safetensors"
    report = kinfold.pack(*middling, out, codec="truncsvd", budget="1/20")
    size, weights = out.stat().st_size, reference(*middling) // 2
    assert report.path == str(out)
    assert report.codec == "truncsvd"
    assert report.file_bytes == size
    assert report.reference_bytes == 2 * weights
    assert report.ratio == pytest.approx(2 * weights / size)
    assert report.bits_per_weight == pytest.approx(8 * size / weights)
    assert report.variant_bytes == sum(len(data) for _, _, data in raw(middling[1]).values())
    assert sum(report.tensors[k] for k in ("truncsvd", "exact")) == len(MIDDLING)
    assert report.unlike == []
    with safe_open(out, "np") as file:
        payloads = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
        assert all(file.get_slice(name).get_dtype() == "U8" for name in file.keys())  # noqa: SIM118
    header = int.from_bytes(out.read_bytes()[:8], "little")
    assert 8 + header + payloads == size


def test_tensors_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    base = pico()
    variant = perturbed(base) | {"head": torch.randn(3, 64), "norm.weight": base["norm.weight"]}
    variant["lm_head.weight"] = variant["embed.weight"].clone()
    variant["layer.1.bias"] = torch.randn(65)
    del variant["layer.0.bias"]
    (there, here) = save(tmp_path / "base", base), save(tmp_path / "variant", variant)
    report = kinfold.pack(there, here, tmp_path / "v.kin.safetensors", codec="exact")
    assert report.tensors == {"exact": 5, "equal": 1, "alias": 1, "new": 2, "absent": 1}
    assert report.unlike == ["layer.1.bias"]


@pytest.mark.parametrize("name", CODECS)
def test_dry_run_bounds_the_real_size_and_writes_nothing(tmp_path: Path, pair: Any, name: str) -> None:
    codec, options = CODECS[name]
    out = tmp_path / "v.kin.safetensors"
    planned = kinfold.pack(*pair, out, codec=codec, options=options, budget="1/4", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert planned.error is None
    kinfold.pack(*pair, out, codec=codec, options=options, budget="1/4")
    assert out.stat().st_size <= planned.file_bytes <= reference(*pair) // 4


@pytest.mark.parametrize("codec", ["osd", "dare", "exact"])
def test_the_same_bytes_on_any_number_of_cores(
    tmp_path: Path, middling: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    seen = set()
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        before = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            kinfold.pack(*middling, tmp_path / f"{cores}", codec=codec, budget="1/40")
        finally:
            torch.set_num_threads(before)
        seen.add((tmp_path / f"{cores}").read_bytes())
    assert len(seen) == 1


def test_the_same_bytes_in_another_process_with_other_threads(tmp_path: Path, middling: tuple[Path, Path]) -> None:
    code = "import sys, kinfold; kinfold.pack(*sys.argv[1:4], budget='1/40')"
    for threads in ("1", "2"):
        out = tmp_path / threads
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", code, *map(str, middling), str(out)], check=True, env=environment)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_seed_decides_and_is_recorded(tmp_path: Path, pair: Any) -> None:
    for seed in (7, 8):
        kinfold.pack(*pair, tmp_path / f"{seed}", codec="dare", budget="1/4", seed=seed)
    assert kinfold.inspect(tmp_path / "7").seed == 7
    # not only the recorded number: the entries kept are others
    restored = []
    for seed in (7, 8):
        kinfold.restore(tmp_path / f"{seed}", pair.base, tmp_path / f"r{seed}")
        restored.append(raw(tmp_path / f"r{seed}")["layer.0.weight"])
    assert restored[0] != restored[1]


@pytest.mark.parametrize("codec", ["osd", "truncsvd"])
def test_a_budget_in_ranks_is_32_bits_a_side(tmp_path: Path, codec: str) -> None:
    base = pico(shapes={"a": (200, 120), "b": (120, 300)})
    there, here = save(tmp_path / "base", base), save(tmp_path / "variant", perturbed(base))
    out = tmp_path / "v"
    kinfold.pack(there, here, out, codec=codec, budget="rank:3")
    for row in kinfold.inspect(out).tensors:
        allowed = 32 * 3 * sum(row.shape) / 8
        assert row.bytes <= allowed
        assert row.bytes >= (0.97 if codec == "osd" else 0.8) * allowed  # truncsvd has whole ranks only


@pytest.mark.parametrize("given", ["", "0", "-1", "4XB", "1/0", "2/1", "rank:", "rank:0", "nonsense", "1e3", "0/5"])
def test_a_malformed_budget_says_what_is_allowed(tmp_path: Path, pair: Any, given: str) -> None:
    with pytest.raises(BudgetError) as caught:
        kinfold.pack(*pair, tmp_path / "v", budget=given)
    assert f"`{given}`" in str(caught.value)
    assert "budget" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ranks_are_no_budget_for_codecs_without(tmp_path: Path, pair: Any) -> None:
    with pytest.raises(BudgetError, match="for osd and truncsvd, not for `dare`"):
        kinfold.pack(*pair, tmp_path / "v", codec="dare", budget="rank:2")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("given", [40, "1/400"])
def test_a_budget_too_small_names_the_least_and_the_least_works(
    tmp_path: Path, pair: Any, name: str, given: str | int
) -> None:
    codec, options = CODECS[name]
    out = tmp_path / "v.kin.safetensors"
    with pytest.raises(BudgetError) as caught:
        kinfold.pack(*pair, out, codec=codec, options=options, budget=given)
    error = caught.value
    least = error.least_bytes
    assert f"the smallest possible is {least} bytes" in str(error)
    assert "1/0" not in error.hint
    assert list(tmp_path.iterdir()) == []
    hinted = error.hint.removeprefix("--budget ").split()[0]
    kinfold.pack(*pair, out, codec=codec, options=options, budget=hinted)
    assert least <= int(hinted.removesuffix("kB")) * 1000 < least + 1000
    kinfold.pack(*pair, out, codec=codec, options=options, budget=least + 300, overwrite=True)
    assert out.stat().st_size <= least + 300


def test_the_named_least_is_the_least(tmp_path: Path, pair: Any) -> None:
    out = tmp_path / "v.kin.safetensors"
    with pytest.raises(BudgetError) as caught:
        kinfold.pack(*pair, out, budget=40)
    for budget in range(caught.value.least_bytes - 120, caught.value.least_bytes + 120, 24):
        try:
            kinfold.pack(*pair, out, budget=budget, overwrite=True)
        except BudgetError:
            assert budget < caught.value.least_bytes
            assert ".partial" not in " ".join(beside(out))
        else:
            assert out.stat().st_size <= budget


NOTHING = {"nothing differs": [], "only biases differ": ["layer.0.bias", "layer.1.bias"]}


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("budget", ["1/100", 300])
def test_no_matrix_to_shrink_and_a_budget_too_small(tmp_path: Path, what: str, budget: str | int) -> None:
    """Once an endless loop: with no matrix to take from, a second plan comes out as large as the first."""
    base = pico()
    changed = perturbed(base)
    there = save(tmp_path / "base", base)
    here = save(tmp_path / "variant", base | {name: changed[name] for name in NOTHING[what]})
    out = tmp_path / "v.kin.safetensors"
    with pytest.raises(BudgetError, match="the smallest possible is") as caught:
        kinfold.pack(there, here, out, budget=budget)
    assert "1/0" not in caught.value.hint
    assert beside(out) == ["base", "variant"]
    kinfold.pack(there, here, out, budget=caught.value.least_bytes)
    assert out.stat().st_size <= caught.value.least_bytes


def test_an_existing_pack_is_kept_unless_told(tmp_path: Path, pair: Any) -> None:
    out = tmp_path / "v.kin.safetensors"
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists") as caught:
        kinfold.pack(*pair, out, codec="exact")
    assert "--overwrite" in caught.value.hint
    assert out.read_bytes() == b"precious"
    with pytest.raises(BudgetError):
        kinfold.pack(*pair, out, budget=40, overwrite=True)
    assert out.read_bytes() == b"precious"  # a failure keeps the old pack
    kinfold.pack(*pair, out, codec="exact", overwrite=True)
    assert kinfold.verify(out, pair.base).sound
    assert beside(out) == ["v.kin.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        ({"codec": "ods"}, "no codec is called `ods`", "--codec osd"),
        ({"codec": "exact", "options": {"score": "mag"}}, "`exact` has no options, got score", ""),
        ({"options": {"scores": "mag"}}, "`osd` does not take scores='mag'", ""),
        ({"options": {"score": "magic"}}, "`osd` does not take score='magic'", ""),
        ({"options": {"score": "fisher"}}, "score=fisher needs calibration", "--calibration FILE.jsonl"),
    ],
)
def test_a_codec_or_option_that_is_none(
    tmp_path: Path, pair: Any, arguments: dict[str, Any], words: str, hint: str
) -> None:
    with pytest.raises(CodecError) as caught:
        kinfold.pack(*pair, tmp_path / "v", **arguments)
    assert words in str(caught.value)
    assert hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []
