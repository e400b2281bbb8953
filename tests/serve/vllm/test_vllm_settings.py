"""Environment and command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinfold.errors import ServeError
from kinfold.serve.vllm.settings import Settings


def test_without_a_store_there_are_no_settings() -> None:
    assert Settings.read({}, []) is None
    assert Settings.read({"KINFOLD_STORE": ""}, []) is None


def test_what_is_set_is_taken() -> None:
    env = {
        "KINFOLD_STORE": "s3://models/store",
        "KINFOLD_VLLM_BASE": "/base",
        "KINFOLD_VLLM_CACHE": "/cache",
        "KINFOLD_VLLM_CACHE_GB": "0.5",
        "KINFOLD_VLLM_PARTIAL": "1",
        "KINFOLD_VLLM_TOLERANCE": "0.2",
        "KINFOLD_VLLM_URL": "http://localhost:8000/",
    }
    settings = Settings.read(env, [])
    assert settings == Settings(
        "s3://models/store", "/base", Path("/cache"), 1 << 29, 16, 0.2, True, "http://localhost:8000"
    )


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"KINFOLD_VLLM_CACHE": "/a", "KINFOLD_CACHE": "/b"}, Path("/a")),
        ({"KINFOLD_CACHE": "/b"}, Path("/b/vllm")),
        ({}, Path.home() / ".cache" / "kinfold" / "vllm"),
    ],
)
def test_cache_lies_with_the_others(env: dict[str, str], folder: Path) -> None:
    settings = Settings.read({"KINFOLD_STORE": "x"} | env, [])
    assert settings is not None
    assert settings.cache == folder


@pytest.mark.parametrize(
    ("env", "argv", "rank"),
    [
        ({}, [], 16),
        ({}, ["serve", "BASE", "--max-lora-rank", "64"], 64),
        ({}, ["--max_lora_rank=128"], 128),
        ({"KINFOLD_VLLM_MAX_LORA_RANK": "8"}, ["--max-lora-rank", "64"], 8),
    ],
)
def test_rank_is_the_servers_flag(env: dict[str, str], argv: list[str], rank: int) -> None:
    settings = Settings.read({"KINFOLD_STORE": "x"} | env, argv)
    assert settings is not None
    assert settings.max_rank == rank


@pytest.mark.parametrize("given", ["17", "0", "many", "-8"])
def test_rank_that_vllm_does_not_take(given: str) -> None:
    with pytest.raises(ServeError, match="vLLM takes 1, 8, 16, 32"):
        Settings.read({"KINFOLD_STORE": "x"}, ["--max-lora-rank", given])


@pytest.mark.parametrize(("name", "value"), [("TOLERANCE", "2"), ("TOLERANCE", "a"), ("CACHE_GB", "-1")])
def test_numbers_out_of_range(name: str, value: str) -> None:
    with pytest.raises(ServeError, match=f"KINFOLD_VLLM_{name} is `{value}`"):
        Settings.read({"KINFOLD_STORE": "x", f"KINFOLD_VLLM_{name}": value}, [])


@pytest.mark.parametrize(("value", "partial"), [("", False), ("0", False), ("1", True)])
def test_partial_is_a_switch(value: str, partial: bool) -> None:
    settings = Settings.read({"KINFOLD_STORE": "x", "KINFOLD_VLLM_PARTIAL": value}, [])
    assert settings is not None
    assert settings.partial is partial
