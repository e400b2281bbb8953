"""The same bytes always, a report that tells the truth, and no output half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors import safe_open

import kinfold
from kinfold.errors import BudgetError, CodecError, OutputError
from kinfold.pack.format import PackFile
from kinfold.pack.write import recipe
from models import MIDDLING, Pair, beside, perturbed, pico, raw, reference_bytes, save

CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "fold": ("fold", {}),
    "osd": ("osd", {}),
    "osd paper": ("osd", {"layout": "paper"}),
    "truncsvd": ("truncsvd", {}),
    "dare": ("dare", {}),
    "magnitude": ("magnitude", {}),
}


def test_report_agrees_with_the_file(tmp_path: Path, middling: tuple[Path, Path]) -> None:
    out = tmp_path / "v.kin.safetensors"
    report = kinfold.pack(*middling, out, codec="truncsvd", budget="1/20")
    size, weights = out.stat().st_size, reference_bytes(*middling) // 2
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
    assert out.stat().st_size <= planned.file_bytes <= reference_bytes(*pair) // 4


@pytest.mark.parametrize("codec", ["fold", "osd", "truncsvd", "dare", "exact"])
def test_the_same_bytes_on_any_number_of_cores(
    tmp_path: Path, middling: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    seen = set()
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        before = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            fine = (
                {"options": {"value_bits": 32}, "budget": "1/2"}
                if codec == "truncsvd"
                else {"budget": None if codec == "exact" else "1/40"}
            )
            kinfold.pack(*middling, tmp_path / f"{cores}", codec=codec, **fine)
        finally:
            torch.set_num_threads(before)
        seen.add((tmp_path / f"{cores}").read_bytes())
    assert len(seen) == 1


def test_the_same_bytes_in_another_process_with_other_threads(tmp_path: Path, middling: tuple[Path, Path]) -> None:
    # directions within the noise, stored in 32 bits: the last bits of an eigenvector are seen in the file
    options = "codec='truncsvd', options={'value_bits': 32}, budget='1/2'"
    code = f"import sys, kinfold; kinfold.pack(*sys.argv[1:4], {options})"
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
        ({"codec": "osd", "options": {"scores": "mag"}}, "`osd` has no option `scores`", ""),
        ({"codec": "osd", "options": {"score": "magic"}}, "`osd` does not take score='magic'", ""),
        (
            {"codec": "osd", "options": {"score": "fisher"}},
            "score=fisher needs calibration",
            "--calibrate FILE.jsonl",
        ),
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


def test_scalars_are_rounded_with_the_rest(tmp_path: Path) -> None:
    """A learned temperature is a tensor without dimensions; it must not stop a pack."""
    matrix = pico(shapes={"layer.weight": (256, 256)})["layer.weight"]
    norm, scale = torch.linspace(1, 2, 512), torch.tensor(2.0)
    base = save(tmp_path / "base", {"layer.weight": matrix, "norm.weight": norm, "scale": scale})
    moved = {"layer.weight": matrix + 0.001, "norm.weight": norm + 0.01, "scale": scale + 0.5}
    variant, out = save(tmp_path / "variant", moved), tmp_path / "v.kin.safetensors"
    assert kinfold.pack(base, variant, out, codec="dare", budget="3kB").tensors["rtn"] == 2
    kinfold.restore(out, base, tmp_path / "back")
    found = torch.frombuffer(bytearray(raw(tmp_path / "back")["scale"][2]), dtype=torch.float32)
    assert found.item() == pytest.approx(2.5, rel=0.01)


def test_the_recipe_is_what_the_manifest_records(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "r.kin.safetensors"
    kinfold.pack(*pair, out, codec="truncsvd", options={"value_bits": 8}, budget=" rank:2 ", seed=3)
    recorded = PackFile.open(out).manifest.recipe
    config = blake3((pair.variant / "config.json").read_bytes()).hexdigest()[:32]
    assert recorded == recipe("truncsvd", {"value_bits": 8}, "rank:2", None, 3) | {"files": {"config.json": config}}
    assert recipe("fold", None, "exact", None, 0) == recipe("exact", None, None, None, 0)
