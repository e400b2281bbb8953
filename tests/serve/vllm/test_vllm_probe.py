"""The probe, and the commands over it, on a server that speaks as vLLM's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kinfold.cli import app
from kinfold.cli.output import run
from kinfold.errors import ServeError
from kinfold.serve.vllm.probe import PROMPTS, Probed, check, distance, unload

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


class Server:
    """`models` maps a name to the log-probability it gives; a callable is asked each time."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {"base": -1.0, "red": -2.5}
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.broken: tuple[int, Any] | None = None

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.broken is not None and path != "/v1/models":
            return self.broken
        if path == "/v1/models":
            return 200, {"data": [{"id": name, "parent": None if name == "base" else "base"} for name in self.models]}
        if path == "/v1/unload_lora_adapter":
            return 200, "Success"
        if body["model"] not in self.models:
            return 400, {"error": {"message": "no such LoRA, for a reason"}}
        value = self.models[body["model"]]
        value = value() if callable(value) else value
        rows = [{"top_logprobs": [{"token_id:1": value, "token_id:2": -9.0}]} for _ in body["prompt"]]
        return 200, {"choices": [{"index": n, "logprobs": row} for n, row in reversed([*enumerate(rows)])]}


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: dict[str, Any]) -> None:
            state.asked.append((self.path, body, self.headers.get("Authorization", "")))
            status, answer = state.answer(self.path, body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state, f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


def test_distance_is_the_largest_difference() -> None:
    one, two = [{"a": -1.0, "b": -4.0}], [{"a": -1.5, "c": -3.0}]
    assert distance(one, one) == 0.0
    assert distance(one, two) == pytest.approx(1.0)  # b: -4 against the other's least, -3; c: -3 against -4; a: 0.5
    assert distance([], []) == 0.0


def test_variant_that_differs(server: tuple[Server, str]) -> None:
    assert check(server[1], ["red"]) == [Probed("red", "differs", 1.5)]
    assert check(server[1]) == [Probed("red", "differs", 1.5)]
    body = next(body for path, body, _ in server[0].asked if path == "/v1/completions")
    assert body["prompt"] == list(PROMPTS)
    assert "prompt_logprobs" not in body  # they end vLLM's CPU engine


def test_variant_that_is_the_base(server: tuple[Server, str]) -> None:
    server[0].models["hollow"] = -1.0
    (row,) = check(server[1], ["hollow"])
    assert (row.state, row.moved) == ("same", 0.0)
    assert "answers as the base does" in row.sentence


def test_variant_that_is_refused(server: tuple[Server, str]) -> None:
    (row,) = check(server[1], ["dense"])
    assert row.state == "refused"
    assert "for a reason" in row.sentence


def test_restless_base_says_nothing(server: tuple[Server, str]) -> None:
    values = iter(range(100))
    server[0].models["base"] = lambda: -float(next(values))
    (row,) = check(server[1], ["red"])
    assert row.state == "unsure"
    assert "base answered differently" in row.sentence


def test_base_that_comes_to_rest_is_asked_again(server: tuple[Server, str]) -> None:
    values = iter([-5.0, -1.0, *[-1.0] * 10])
    server[0].models["base"] = lambda: next(values)
    assert check(server[1], ["red"])[0].state == "differs"


def test_key_is_sent(server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    check(server[1], ["red"])
    assert {key for _, _, key in server[0].asked} == {"Bearer secret"}


def test_unload(server: tuple[Server, str]) -> None:
    unload(server[1], "red")
    assert server[0].asked[-1][:2] == ("/v1/unload_lora_adapter", {"lora_name": "red"})
    server[0].broken = (404, "not here")
    with pytest.raises(ServeError, match="404 not here"):
        unload(server[1], "red")


def test_no_server() -> None:
    with pytest.raises(ServeError, match="does not answer"):
        check("http://127.0.0.1:9", ["red"])


def test_server_without_a_base(server: tuple[Server, str]) -> None:
    server[0].models = {"red": 0.0}
    with pytest.raises(ServeError, match="lists no base model"):
        check(server[1])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"choices": [{"index": 0}]}, "gives no log-probabilities"),
        ({"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"a": 0.0}]}}]}, "answers 1 of 3"),
    ],
)
def test_answers_of_another_kind(server: tuple[Server, str], answer: Any, words: str) -> None:
    server[0].broken = (200, answer)
    with pytest.raises(ServeError, match=words):
        check(server[1], ["red"])


def test_command_ends_with_3_where_one_is_the_base(
    server: tuple[Server, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, ["vllm", "check", server[1], "red"]) == 0
    assert "differs from the base" in capsys.readouterr().out
    server[0].models["hollow"] = -1.0
    assert run(app, ["vllm", "check", server[1], "--format", "json"]) == 3
    rows = json.loads(capsys.readouterr().out)["variants"]
    assert [(row["name"], row["state"]) for row in rows] == [("red", "differs"), ("hollow", "same")]
