"""Config and tokenizer files travel with a pack, byte for byte."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import kinfold
from kinfold.errors import CheckpointError, PackError
from kinfold.pack import files
from models import perturbed, pico, save


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """A vocabulary of 3000 words; the variant has one more, another config and files of its own."""
    random.seed(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(3000)]
    base = save(tmp_path / "base", pico(), {"layers": 2})
    variant = save(tmp_path / "variant", perturbed(pico()), {"layers": 2, "labels": ["a", "b"]})
    for directory, vocabulary in ((base, words), (variant, [*words, "extra"])):
        (directory / "vocab.txt").write_text("\n".join(vocabulary))
        (directory / "special_tokens_map.json").write_text(json.dumps({"unk_token": "[UNK]"}))
    (variant / "1_Pooling").mkdir()
    (variant / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    (variant / "empty.txt").write_text("")
    (variant / "README.md").write_text("trained on data")
    (variant / "optimizer.pt").write_bytes(b"0")
    (base / "only_base.json").write_text("{}")
    return base, variant


def test_every_file_comes_back_from_where_it_is_cheapest(tmp_path: Path, sides: tuple[Path, Path]) -> None:
    base, variant = sides
    out = tmp_path / "v.kin.safetensors"
    report = kinfold.pack(base, variant, out, codec="exact")
    assert report.left_out == ["README.md", "optimizer.pt"]
    info = kinfold.inspect(out)
    assert info.left_out == report.left_out
    assert info.files["special_tokens_map.json"] == "base"
    assert info.files["vocab.txt"] == "patch"
    assert info.files["1_Pooling/config.json"] == "pack"
    kinfold.restore(out, base, tmp_path / "restored")
    names = ["1_Pooling/config.json", "config.json", "empty.txt", "special_tokens_map.json", "vocab.txt"]
    found = sorted(p.relative_to(tmp_path / "restored").as_posix() for p in (tmp_path / "restored").rglob("*.*"))
    assert found == sorted([*names, "KINFOLD.md", "model.safetensors"])
    for name in names:
        assert (tmp_path / "restored" / name).read_bytes() == (variant / name).read_bytes()
    assert "`README.md`, `optimizer.pt`" in (tmp_path / "restored" / "KINFOLD.md").read_text()


def test_one_more_word_costs_little(tmp_path: Path, sides: tuple[Path, Path]) -> None:
    base, variant = sides
    sizes = []
    for number in range(2):
        kinfold.pack(base, variant, tmp_path / f"{number}", codec="exact")
        sizes.append((tmp_path / f"{number}").stat().st_size)
        (variant / "vocab.txt").write_bytes((base / "vocab.txt").read_bytes())
    assert 0 < sizes[0] - sizes[1] < 200
    assert (base / "vocab.txt").stat().st_size > 20_000


def test_verify_with_a_base_looks_at_its_files(tmp_path: Path, sides: tuple[Path, Path]) -> None:
    base, variant = sides
    out = tmp_path / "v.kin.safetensors"
    kinfold.pack(base, variant, out, codec="exact")
    found = kinfold.verify(out, base)
    assert found.sound
    assert "5 files beside the weights" in found.checked
    (base / "vocab.txt").write_text("another")
    found = kinfold.verify(out, base)
    assert not found.sound
    assert "vocab.txt" in found.problem


def test_their_bytes_count_against_the_budget(tmp_path: Path, sides: tuple[Path, Path]) -> None:
    base, variant = sides
    noise = random.Random(1).randbytes(2000).hex()
    (variant / "notes.json").write_text(json.dumps(noise))
    for budget in (14_000, 15_000):
        kinfold.pack(base, variant, tmp_path / f"{budget}", budget=budget)
        assert 0.97 * budget <= (tmp_path / f"{budget}").stat().st_size <= budget


def test_files_too_large_together_are_refused_on_both_sides(
    tmp_path: Path, sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, variant = sides
    kinfold.pack(base, variant, tmp_path / "v", codec="exact")
    monkeypatch.setattr(files, "MAX_FILES", 10)
    with pytest.raises(CheckpointError, match="at most 10 can be carried"):
        kinfold.pack(base, variant, tmp_path / "w", codec="exact")
    with pytest.raises(PackError, match="more than 10 bytes"):
        kinfold.restore(tmp_path / "v", base, tmp_path / "back")
    assert not (tmp_path / "back").exists()
