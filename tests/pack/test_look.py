"""`inspect`, `verify` and `diff` against the file itself and numpy in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import kinfold
from forge import take_apart
from kinfold.errors import CheckpointError, WrongBaseError
from models import perturbed, pico, raw, save


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, variant and an `osd` pack with a new, an equal, a tied, a resized and an absent tensor."""
    folder = tmp_path_factory.mktemp("looked")
    base = pico() | {"gone": torch.ones(5), "same": torch.ones(4)}
    variant = perturbed(base) | {"head.weight": torch.randn(3, 64), "same": torch.ones(4)}
    variant["embed.weight"] = torch.cat([variant["embed.weight"], torch.randn(6, 48)])
    variant["twin"] = variant["layer.0.weight"].clone()
    del variant["gone"]
    paths = save(folder / "base", base), save(folder / "variant", variant)
    kinfold.pack(*paths, folder / "v.kin.safetensors", codec="osd", budget="1/2", seed=5)
    return *paths, folder / "v.kin.safetensors"


def test_inspect_tells_what_is_in_the_file(looked: tuple[Path, Path, Path]) -> None:
    _, variant, pack = looked
    info = kinfold.inspect(pack)
    size = pack.stat().st_size
    metadata, manifest, _ = take_apart(pack)
    assert (info.path, info.variant, info.base, info.codec) == (str(pack), "variant", "base", "osd")
    assert info.base_fingerprint == metadata["kinfold.base"]
    assert (info.budget, info.seed, info.file_bytes) == ("1/2", 5, size)
    assert info.created_by.startswith(f"kinfold {kinfold.__version__}")
    total = sum(len(data) for _, _, data in raw(variant).values())
    assert info.variant_bytes == total
    assert info.ratio_to_variant == pytest.approx(total / size)
    assert info.ratio == pytest.approx(info.reference_bytes / size)
    assert info.overhead_bytes == size - sum(unit["bytes"] for unit in manifest["units"])
    assert (info.equal, info.alias, info.absent) == (1, 1, ["gone"])
    assert not info.lossless
    names = {row.name for row in info.tensors}
    assert {"embed.weight[0:64]", "embed.weight[64:70]", "head.weight"} <= names
    assert not {"same", "twin", "gone"} & names
    for row in info.tensors:
        assert row.energy_kept == pytest.approx(1 - row.error**2)
        if row.codec == "osd":
            assert row.bits_per_weight == pytest.approx(8 * row.bytes / np.prod(row.shape))
            assert row.rank is not None
            assert 0 < row.error < 1
    # a group's bytes are shared out among its tensors
    assert sum(row.bytes for row in info.tensors) == pytest.approx(size - info.overhead_bytes, abs=len(info.tensors))


def test_the_safetensors_library_opens_a_pack(looked: tuple[Path, Path, Path]) -> None:
    with safe_open(looked[2], "np") as file:
        assert file.metadata().keys() == {"kinfold.format", "kinfold.base", "kinfold.variant", "kinfold.manifest"}
        assert file.metadata()["kinfold.format"] == "1"
        names = list(file.keys())
        assert {"#manifest", "#small"} <= set(names)
        assert all(file.get_tensor(name).dtype == np.uint8 and file.get_tensor(name).ndim == 1 for name in names)


def test_a_large_payload_is_an_entry_of_its_own(tmp_path: Path) -> None:
    base = pico(shapes={"big.weight": (300, 300), "small.weight": (10,)})
    grown = perturbed(base)
    grown["big.weight"] = torch.cat([grown["big.weight"], torch.randn(100, 300)])
    there, here = save(tmp_path / "base", base), save(tmp_path / "variant", grown)
    kinfold.pack(there, here, tmp_path / "v", codec="exact")
    with safe_open(tmp_path / "v", "np") as file:
        assert set(file.keys()) == {"#manifest", "big.weight#exact", "big.weight@300#exact", "#small"}


def test_verify_finds_a_sound_pack_sound(looked: tuple[Path, Path, Path]) -> None:
    base, _, pack = looked
    found = kinfold.verify(pack)
    assert (found.sound, found.problem, found.path) == (True, "", str(pack))
    assert found.checked[:2] == ["header", "manifest"]
    assert "decoding" not in " ".join(found.checked)
    found = kinfold.verify(pack, base)
    assert found.sound
    assert "fingerprint of the base" in found.checked
    assert "decoding of 9 tensors" in found.checked


def test_verify_reports_damage_and_does_not_raise(looked: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, variant, pack = looked
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    found = kinfold.verify(tmp_path / "damaged")
    assert not found.sound
    assert "`#small` of" in found.problem
    assert not kinfold.verify(tmp_path / "nowhere").sound
    with pytest.raises(WrongBaseError, match="is not the base"):  # the pack is sound: no damage to report
        kinfold.verify(pack, variant)
    with pytest.raises(CheckpointError):
        kinfold.verify(pack, tmp_path / "nowhere")


def test_verify_finds_what_only_decoding_shows(looked: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from forge import forge

    base, _, pack = looked
    _, _, entries = take_apart(pack)
    noise = bytes(len(entries["#small"]))
    forged = forge(pack, tmp_path / "forged", lambda manifest: None, small=noise)
    assert kinfold.verify(forged).sound  # every hash is right
    assert not kinfold.verify(forged, base).sound


def test_diff_against_numpy(looked: tuple[Path, Path, Path]) -> None:
    base, variant, _ = looked
    report = kinfold.diff(base, variant)
    assert (report.base, report.variant, report.equal, report.prefix) == (str(base), str(variant), 1, ("", ""))
    assert {row.name: row.status for row in report.rows} == {
        "embed.weight": "resized",
        "gone": "absent",
        "head.weight": "new",
        "twin": "alias",
        **dict.fromkeys(["layer.0.weight", "layer.0.bias", "layer.1.weight", "layer.1.bias", "norm.weight"], "changed"),
    }
    there, here = raw(base), raw(variant)
    norms = []
    for row in report.rows:
        if row.status not in ("changed", "resized"):
            assert row.relative_norm is None
            continue
        shape = there[row.name][1]
        before = np.frombuffer(there[row.name][2], np.float32).astype(np.float64).reshape(shape)
        after = np.frombuffer(here[row.name][2], np.float32).astype(np.float64)[: before.size].reshape(shape)
        delta = after - before
        assert row.relative_norm == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(before), rel=1e-9)
        cosine = (before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after)
        assert row.cosine == pytest.approx(cosine, rel=1e-9)
        if len(shape) == 2:
            singular = np.linalg.svd(delta, compute_uv=False)
            assert row.stable_rank == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-6)
        else:
            assert row.stable_rank is None
        norms.append(row.relative_norm)
    assert len(norms) == 6
    assert norms == sorted(norms, reverse=True)
    assert report.rows[-1].status == "absent"


def test_diff_of_two_architectures_is_no_error(tmp_path: Path, pair: Any) -> None:
    other = save(tmp_path / "other", pico(shapes={"w": (2, 3)}))
    report = kinfold.diff(pair.base, other)
    assert [row.status for row in report.rows if row.name == "w"] == ["new"]
    assert sum(row.status == "absent" for row in report.rows) == len(pico())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.zeros(4), torch.ones(4)),
        (torch.tensor(2.0), torch.tensor(3.0)),
        (torch.zeros(0, 3), torch.zeros(0, 3).half()),
        (torch.arange(20), torch.arange(20) + 1),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])),
        (torch.ones(6).to(torch.float8_e4m3fn), torch.zeros(6).to(torch.float8_e4m3fn)),
    ],
    ids=["zero base", "scalar", "empty", "integers", "NaN", "float8"],
)
def test_diff_of_odd_tensors(tmp_path: Path, before: torch.Tensor, after: torch.Tensor) -> None:
    there, here = (save(tmp_path / n, pico() | {"x": t}) for n, t in (("base", before), ("variant", after)))
    (row,) = kinfold.diff(there, here).rows
    assert (row.name, row.status, row.shape) == ("x", "changed", tuple(before.shape))
    if before.is_floating_point() and before.double().norm() and bool(torch.isfinite(after.double()).all()):
        wanted = float((after.double() - before.double()).norm() / before.double().norm())
        assert row.relative_norm == pytest.approx(wanted)
    elif not before.is_floating_point() or not before.double().norm():
        assert row.relative_norm is None
