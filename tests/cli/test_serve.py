"""`kinfold serve`: its options are the function's, and what it prints."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from kinfold.cli import app
from kinfold.cli import serve as command
from kinfold.cli.output import run
from kinfold.serve import server
from kinfold.serve.server import Serving

OPEN = Serving("http://127.0.0.1:8000", "base", ["base", "movie"], ["generate", "embed"], "")


def asked(monkeypatch: pytest.MonkeyPatch, serving: Serving = OPEN) -> list[dict[str, Any]]:
    """Calls of the function; it says that it is ready and returns."""
    calls: list[dict[str, Any]] = []

    def serve(store: str, *, ready: Any, **options: Any) -> None:
        calls.append({"store": store, **options})
        ready(serving)

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.delenv("KINFOLD_API_KEY", raising=False)
    return calls


def test_options_and_defaults_are_those_of_the_function() -> None:
    mine = dict(inspect.signature(command.serve).parameters)
    theirs = dict(inspect.signature(server.serve).parameters)
    del mine["format"], theirs["ready"]
    assert list(mine) == list(theirs)
    assert {name: one.default for name, one in mine.items()} == {name: one.default for name, one in theirs.items()}


def test_what_is_given_reaches_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch)
    argv = [
        "serve",
        "s3://bucket/x",
        "--base",
        "base",
        "--port",
        "0",
        "--api-key",
        "k",
        "--max-batch",
        "4",
        "--queue",
        "5",
    ]
    argv += ["--max-tokens", "6", "--variant-memory", "1GB", "--pin", "a", "--pin", "b", "--dtype", "float32"]
    argv += ["--device", "cuda", "--max-body", "2MiB", "--refresh", "1", "--grace", "2", "--host", "::1"]
    assert run(app, argv) == 0
    (call,) = calls
    assert (call["store"], call["base"], call["host"], call["port"], call["api_key"]) == (
        "s3://bucket/x",
        "base",
        "::1",
        0,
        "k",
    )
    assert (call["max_batch"], call["queue"], call["max_tokens"], call["variant_memory"]) == (4, 5, 6, "1GB")
    assert (call["pin"], call["dtype"], call["device"], call["max_body"]) == (("a", "b"), "float32", "cuda", "2MiB")
    assert (call["refresh"], call["grace"], call["cache"], call["store_cache"]) == (1.0, 2.0, "full", None)


def test_the_key_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = asked(monkeypatch)
    monkeypatch.setenv("KINFOLD_API_KEY", "from-env")
    assert run(app, ["serve", "store", "--base", "base"]) == 0
    assert calls[0]["api_key"] == "from-env"
    said = capsys.readouterr()
    assert "from-env" not in said.out + said.err
    assert "$KINFOLD_API_KEY" in said.err


def test_what_it_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked(monkeypatch)
    assert run(app, ["serve", "store", "--base", "base"]) == 0
    said = capsys.readouterr()
    assert "http://127.0.0.1:8000" in said.out
    assert "base, movie" in said.out
    assert "curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json'" in said.err
    assert '"model": "movie"' in said.err
    assert run(app, ["serve", "store", "--base", "base", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["base", "movie"]


def test_an_encoder_and_many_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["base", *(f"v{number}" for number in range(30))]
    asked(monkeypatch, Serving("http://127.0.0.1:1", "base", names, ["embed"], ""))
    assert run(app, ["serve", "store", "--base", "base"]) == 0
    said = capsys.readouterr()
    assert "and 11 more" in said.out
    assert "/v1/embeddings" in said.err


def test_the_warning_is_loud(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked(monkeypatch, Serving("http://0.0.0.0:8000", "base", ["base"], ["embed"], "other machines can reach it"))
    assert run(app, ["serve", "store", "--base", "base", "--host", "0.0.0.0"]) == 0
    assert "warning: other machines can reach it: give one with --api-key" in capsys.readouterr().err
