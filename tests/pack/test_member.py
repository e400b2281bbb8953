"""Members: the same variant read from its directory and from its packs, against safetensors and torch alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kinfold
from kinfold.errors import CheckpointError, FamilyError, OutputError, PackError, WrongBaseError
from kinfold.pack.member import Base, Member, stem
from kinfold.pack.members import materialise, open_member, open_members
from models import Pair, Tensors, perturbed, pico, raw, reference_bytes, save

CODECS: dict[str, dict[str, Any]] = {
    "exact": {},
    "truncsvd": {"budget": "1/8"},
    "osd": {"budget": "1/8"},
    "fold": {"budget": "1/8"},
    "bitdelta": {"budget": "1/3"},
}
WHOLE = ["grown", "head.weight", "ids", "lm_head.weight"]


def tensors(directory: Path) -> Tensors:
    return load_file(directory / "model.safetensors")


def odd_base() -> Tensors:
    more = {"grown": torch.randn(70, 64, generator=torch.Generator().manual_seed(3)), "ids": torch.arange(9)}
    return pico() | more | {"same": torch.ones(40), "gone": torch.ones(3), "wide": torch.ones(12).double()}


def odd_variant() -> Tensors:
    base = odd_base()
    floats = {name: t for name, t in base.items() if name not in ("ids", "gone", "same", "wide")}
    generator = torch.Generator().manual_seed(4)
    variant = perturbed(floats) | {"same": base["same"], "ids": base["ids"] + 1}
    variant["grown"] = torch.cat([variant["grown"], torch.randn(5, 64, generator=generator)])
    variant["head.weight"] = torch.randn(3, 64, generator=generator)
    variant["lm_head.weight"] = variant["embed.weight"].clone()  # tied
    variant["wide"] = base["wide"] + 1e-9
    variant["layer.1.bias"] = variant["layer.1.bias"].half()
    return variant


class Odd:
    """A base, a variant with every kind of tensor, and packs of it; members of all."""

    def __init__(self, folder: Path) -> None:
        self.base = save(folder / "base", odd_base())
        self.variant = save(folder / "variant", odd_variant(), {"changed": True})
        (self.variant / "vocab.txt").write_text("a\nb\n")
        self.opened = Base.open(self.base)
        self.paths = {"model": self.variant}
        for codec, options in CODECS.items():
            self.paths[codec] = folder / f"{codec}.kin.safetensors"
            kinfold.pack(self.base, self.variant, self.paths[codec], codec=codec, **options)
        self.restored = {"model": self.variant}
        for codec in CODECS:
            self.restored[codec] = folder / f"{codec}-restored"
            kinfold.restore(self.paths[codec], self.base, self.restored[codec])

    def member(self, key: str) -> Member:
        return open_member(self.paths[key], self.opened)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    return Odd(tmp_path_factory.mktemp("odd"))


ALL = ["model", *CODECS]


def rounding(name: str, key: str) -> float:
    """A delta coded with loss is not rounded to the variant's dtype, as a restored value is."""
    return 5e-5 if name == "layer.1.bias" and key not in ("model", "exact") else 1e-7


@pytest.mark.parametrize("key", ALL)
def test_every_tensor_has_its_place(odd: Odd, key: str) -> None:
    member = odd.member(key)
    assert member.kind == ("model" if key == "model" else "pack")
    assert member.codec == ("exact" if key == "model" else key)
    assert member.name == ("variant" if key == "model" else key)
    assert member.specs == {n: t[:2] for n, t in raw(odd.variant).items()}
    shared = [n for n, t in odd_base().items() if n in odd_variant() and odd_variant()[n].shape == t.shape]
    assert list(member.own.items()) == [(name, name) for name in sorted(shared) if name != "ids"]
    assert member.same == {"same"}
    assert sorted(member.whole) == WHOLE
    assert member.absent == ["gone"]
    assert set(member.changed) == set(member.own) - {"same"}


@pytest.mark.parametrize("key", ALL)
def test_values_are_those_that_restoring_gives(odd: Odd, key: str) -> None:
    member, wanted = odd.member(key), raw(odd.restored[key])
    for name in member.specs:
        value = member.value(name)
        dtype, shape, data = wanted[name]
        assert member.specs[name] == (dtype, tuple(value.shape)) == (dtype, shape)
        assert value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == data


@pytest.mark.parametrize("key", ALL)
def test_deltas_are_values_minus_the_base(odd: Odd, key: str) -> None:
    member, there, wanted = odd.member(key), tensors(odd.base), tensors(odd.restored[key])
    for name in member.own:
        delta = member.delta(name)
        assert delta.dtype == torch.float32
        assert delta.shape == there[name].shape
        exact = (wanted[name].double() - there[name].double()).numpy()
        assert np.allclose(delta.numpy(), exact, rtol=2e-7, atol=rounding(name, key))
    assert not member.delta("same").any()
    if key in ("model", "exact"):
        assert float(member.delta("wide")[0]) == pytest.approx(1e-9, rel=1e-6)  # subtracted in float64


def test_a_coded_delta_is_not_rounded_to_the_variants_dtype(tmp_path: Path) -> None:
    """In bfloat16 the restored values would swallow most of a small delta; the code holds it."""
    base = {name: tensor.bfloat16() for name, tensor in pico().items()}
    variant = perturbed(base, scale=1e-4)
    paths = save(tmp_path / "base", base), save(tmp_path / "variant", variant)
    kinfold.pack(*paths, tmp_path / "v", codec="truncsvd", budget="1/4")
    member = open_member(tmp_path / "v", Base.open(paths[0]))
    pair = member.factors("layer.0.weight")
    assert pair is not None
    product = pair[0].numpy() @ pair[1].numpy().T
    assert np.allclose(member.delta("layer.0.weight").numpy(), product, rtol=0, atol=1e-8)
    assert member.specs["layer.0.weight"][0] == "BF16"


@pytest.mark.parametrize("key", ALL)
def test_factors_where_there_are_some(odd: Odd, key: str) -> None:
    member = odd.member(key)
    for name in member.own:
        pair = member.factors(name)
        if key in ("truncsvd", "osd") and name in ("layer.0.weight", "layer.1.weight"):
            assert pair is not None
            assert pair[0].dtype == pair[1].dtype == torch.float64
            product = pair[0].numpy() @ pair[1].numpy().T
            assert np.allclose(product, member.delta(name).numpy(), rtol=0, atol=1e-6)
        else:
            assert pair is None


@pytest.mark.parametrize("key", ALL)
def test_pieces_cover_what_must_be_stored(odd: Odd, key: str) -> None:
    member = odd.member(key)
    pieces = member.pieces()
    rows: dict[str, int] = {}
    for piece in pieces:
        rows[piece.name] = rows.get(piece.name, 0) + (piece.part[0] if piece.part else 1)
    stored = {name for name in odd_variant() if name not in ("same", "lm_head.weight")}
    assert rows == {name: len(odd_variant()[name]) for name in stored}
    assert {piece.base for piece in pieces if piece.name == "head.weight"} == {None}
    # 2 bytes a weight that differs; a tied tensor and the rows that a tensor grew by count once
    tied = 2 * odd_variant()["lm_head.weight"].numel()
    assert member.reference_bytes == reference_bytes(odd.base, odd.variant) - tied


@pytest.mark.parametrize("key", ["model", "exact", "osd"])
def test_what_encoding_sees(odd: Odd, key: str) -> None:
    member = odd.member(key)
    there, wanted = tensors(odd.base), tensors(odd.restored[key])
    seen = member.deltas
    for piece in member.pieces():
        rows = slice(*piece.rows) if piece.rows else slice(None)
        value = seen.values([piece])
        assert torch.equal(value, wanted[piece.name][rows])
        reference = seen.reference([piece])
        assert (reference is None) == (piece.base is None)
        exact = wanted[piece.name][rows].double()
        if piece.base is not None:
            assert reference is not None
            assert torch.equal(reference, there[piece.base][rows])
            exact = exact - there[piece.base][rows].double()
        delta = seen.delta([piece])
        assert np.allclose(delta.double().numpy(), exact.numpy(), rtol=2e-7, atol=rounding(piece.name, key))
        blocks = list(seen.delta_blocks(piece))
        assert torch.equal(torch.cat([block for _, block in blocks]), delta.reshape(-1))
        assert [start for start, _ in blocks] == np.cumsum([0, *[b.numel() for _, b in blocks[:-1]]]).tolist()
    two = [piece for piece in member.pieces() if piece.name in ("layer.0.bias", "norm.weight")]
    assert torch.equal(seen.delta(two), torch.cat([seen.delta([piece]).reshape(-1) for piece in two]))
    assert seen.values(two).shape == (sum(piece.numel for piece in two),)


@pytest.mark.parametrize("key", ["model", "exact", "osd"])
def test_files_and_skeleton(odd: Odd, key: str) -> None:
    member = odd.member(key)
    files: Mapping[str, bytes] = member.files()
    assert set(files) == {"config.json", "vocab.txt"}
    assert json.loads(files["config.json"])["changed"] is True
    manifest, blob = member.skeleton(codec="truncsvd", seed=5)
    assert (manifest.codec, manifest.seed, manifest.units, manifest.entries) == ("truncsvd", 5, [], {})
    assert (manifest.equal, manifest.absent) == (["same"], ["gone"])
    assert manifest.alias in ({"lm_head.weight": "embed.weight"}, {"embed.weight": "lm_head.weight"})
    assert len(blob) == sum(file.bytes for file in manifest.files) > 0
    assert manifest.base.fingerprint == odd.opened.fingerprint
    assert manifest.variant.fingerprint == member.fingerprint == odd.member("model").fingerprint


@pytest.mark.parametrize("key", ALL)
def test_a_member_becomes_a_model_directory(odd: Odd, tmp_path: Path, key: str) -> None:
    materialise(odd.member(key), tmp_path / "out")
    assert raw(tmp_path / "out") == raw(odd.restored[key])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["changed"] is True
    assert (tmp_path / "out" / "vocab.txt").read_text() == "a\nb\n"
    with pytest.raises(OutputError, match="exists"):
        materialise(odd.member(key), tmp_path / "out")
    materialise(odd.member("exact"), tmp_path / "out", overwrite=True)
    assert raw(tmp_path / "out") == raw(odd.variant)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_fails_while_it_becomes_one_leaves_nothing(odd: Odd, tmp_path: Path, monkeypatch: Any) -> None:
    member = odd.member("osd")
    monkeypatch.setattr(member, "files", lambda: {}["gone"])
    with pytest.raises(KeyError):
        materialise(member, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["exact", "truncsvd"])
def test_deltas_go_by_the_bases_names(classifier_pair: Pair, tmp_path: Path, codec: str) -> None:
    """The variant has a prefix and a head; the base is a bare encoder."""
    opened = Base.open(classifier_pair.base)
    options: dict[str, Any] = {} if codec == "exact" else {"budget": "1/3"}
    kinfold.pack(*classifier_pair, tmp_path / "v", codec=codec, **options)
    model, packed = open_member(classifier_pair.variant, opened), open_member(tmp_path / "v", opened)
    for member in (model, packed):
        assert all(own == f"bert.{name}" for name, own in member.own.items())
        assert sorted(member.whole) == ["classifier.bias", "classifier.weight"]
        assert set(member.own) | set(member.absent) == set(raw(classifier_pair.base))
    assert model.own == packed.own
    assert model.same == packed.same
    if codec == "exact":
        assert all(torch.equal(model.delta(name), packed.delta(name)) for name in model.own)
    materialise(packed, tmp_path / "out")
    kinfold.restore(tmp_path / "v", classifier_pair.base, tmp_path / "restored")
    assert raw(tmp_path / "out") == raw(tmp_path / "restored")


def test_names_are_stems_unless_they_are_given(odd: Odd, tmp_path: Path) -> None:
    paths = [odd.paths["osd"], str(odd.variant)]
    assert [member.name for member in open_members(paths, odd.opened)] == ["osd", "variant"]
    named = open_members({"b": odd.variant, "a": odd.paths["osd"]}, odd.opened)
    assert [(member.name, member.kind) for member in named] == [("b", "model"), ("a", "pack")]
    for path, wanted in (("x/movie.kin.safetensors", "movie"), ("movie.safetensors", "movie"), ("v1.5", "v1.5")):
        assert stem(tmp_path / path) == wanted
    assert stem(odd.variant / ".") == "variant"


@pytest.mark.parametrize("error", [PackError, FamilyError])
def test_two_members_of_one_name(odd: Odd, error: type[Exception]) -> None:
    with pytest.raises(error, match="two members are called `osd`"):
        open_members([odd.paths["osd"], odd.paths["osd"]], odd.opened, error)


def test_a_pack_of_another_base(odd: Odd, tmp_path: Path) -> None:
    other = Base.open(save(tmp_path / "other", pico(seed=8)))
    with pytest.raises(WrongBaseError, match="was made from `base` with fingerprint") as caught:
        open_member(odd.paths["osd"], other)
    message = str(caught.value)
    assert odd.opened.fingerprint[:16] in message
    assert other.fingerprint[:16] in message
    assert "one base" in caught.value.hint


def test_what_cannot_be_a_member(odd: Odd, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no `.*nowhere`; a member is a model directory") as caught:
        open_member(tmp_path / "nowhere", odd.opened)
    assert caught.value.hint == f"ls {tmp_path}"
    (tmp_path / "text").write_text("hello")
    with pytest.raises(PackError, match="no valid safetensors file"):
        open_member(tmp_path / "text", odd.opened)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no"):
        open_member(tmp_path / "empty", odd.opened)
    with pytest.raises(CheckpointError, match="does not exist"):
        Base.open(tmp_path / "nowhere")


def test_the_base_is_hashed_once(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    from kinfold.pack import source

    hashed: list[Path] = []
    real = source.digests
    monkeypatch.setattr(source, "digests", lambda c, *rest: hashed.append(c.directory) or real(c, *rest))
    open_members({"a": odd.variant, "b": odd.variant, "c": odd.paths["osd"]}, odd.opened)
    assert hashed == [odd.variant, odd.variant]
