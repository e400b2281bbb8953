"""What is refused and how, the key, the models, the other routes."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import struct
from typing import Any

import httpx
import openai
import pytest
from fakes import FakeEngine, served, soon

from kinfold.errors import ServeError
from kinfold.serve.app import create_app


def post(url: str, body: Any, route: str = "completions", **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/{route}", json=body, **more)


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_models(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        found = {model.id: model for model in client.models.list()}
        assert list(found) == ["base", "movie", "tweets", "boom", "crash", "stump", "broken", "mute"]
        assert found["movie"].object == "model"
        extra = found["broken"].model_extra or {}
        assert (extra["parent"], extra["state"], extra["reason"]) == ("base", "refused", "its object is corrupt")
        assert client.models.retrieve("movie") == found["movie"]
        with pytest.raises(openai.NotFoundError, match="near names: movie"):
            client.models.retrieve("movies")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b", "..", "movie/../movie", "%2e%2e", "x" * 5000, "é"])
def test_a_name_is_never_a_path(url: str, name: str) -> None:
    for route, body in [
        ("completions", {"prompt": "a"}),
        ("completions", {"prompt": [1, 2]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("embeddings", {"input": [1]}),
        ("classify", {"input": "a"}),
    ]:
        reply = post(url, {"model": name, **body}, route)
        assert reply.status_code == 404
        assert error_of(reply)["code"] == "model_not_found"
    reply = httpx.get(f"{url}/v1/models/" + name.replace("%", "%25").replace("\0", "%00").replace("/", "%2F"))
    assert reply.status_code == 404
    assert error_of(reply)["code"] in ("model_not_found", "no_such_route")  # `..` climbs out of /v1/models


def test_near_names(url: str) -> None:
    error = error_of(post(url, {"model": "tweats", "prompt": "a"}))
    assert error["message"] == "the model `tweats` is not served; near names: tweets"
    assert (error["type"], error["param"], error["code"]) == ("not_found_error", "model", "model_not_found")
    assert "GET /v1/models" in error_of(post(url, {"model": "zzz", "prompt": "a"}))["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"1" * 5000 + b"}", b"null"],
)
def test_malformed_json(url: str, body: bytes) -> None:
    reply = httpx.post(f"{url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert error_of(reply)["code"] in ("invalid_json", "invalid_value")


GOOD = {"model": "movie", "prompt": "a"}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": None}, "model", "invalid_value"),
        ({"model": ""}, "model", "invalid_value"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": 3}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [2**31]}, "prompt", "invalid_value"),
        ({"prompt": [True]}, "prompt", "invalid_value"),
        ({"prompt": "\ud800"}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt", "unsupported_parameter"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"max_tokens": 200}, "prompt", "context_length_exceeded"),
        ({"prompt": "x" * 200}, "prompt", "context_length_exceeded"),
    ],
)
def test_a_completion_that_cannot_be(url: str, change: dict[str, Any], param: str, code: str) -> None:
    reply = httpx.post(f"{url}/v1/completions", content=json_of(GOOD | change), headers=JSON)
    assert reply.status_code == 400
    error = error_of(reply)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert param.partition("[")[0] in error["message"] or code == "context_length_exceeded"


JSON = {"Content-Type": "application/json"}


def json_of(body: Any) -> bytes:
    """As Python spells it: half surrogates and NaN too."""
    import json

    return json.dumps(body).encode()


def test_nan_is_no_temperature(url: str) -> None:
    reply = httpx.post(f"{url}/v1/completions", content=json_of(GOOD | {"temperature": float("nan")}), headers=JSON)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "temperature")


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "invalid_value"),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages[0].tool_calls", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        ({"max_completion_tokens": 200}, "messages", "context_length_exceeded"),
    ],
)
def test_a_chat_that_cannot_be(url: str, change: dict[str, Any], param: str, code: str) -> None:
    body = {"model": "movie", "messages": [USER]} | change
    reply = httpx.post(f"{url}/v1/chat/completions", content=json_of(body), headers=JSON)
    assert reply.status_code == 400
    assert (error_of(reply)["param"], error_of(reply)["code"]) == (param, code)


def test_what_asks_for_nothing_is_taken(url: str) -> None:
    """Clients send defaults and fields of their own."""
    body = GOOD | {"suffix": None, "echo": False, "logit_bias": {}, "presence_penalty": 0.0, "user": "u", "best_of": 1}
    assert post(url, body | {"no_such_field": 1, "max_tokens": None}).status_code == 200
    chat = {"model": "movie", "messages": [USER | {"name": "Ada"}], "tools": [], "tool_choice": "none", "store": True}
    chat |= {"response_format": {"type": "text"}, "max_tokens": 1, "metadata": {"a": "b"}}
    assert post(url, chat, "chat/completions").status_code == 200


def test_a_refused_variant(url: str) -> None:
    for body in (GOOD, {"model": "movie", "prompt": [1], "stream": True}):
        reply = post(url, body | {"model": "broken"})
        assert reply.status_code == 503
        error = error_of(reply)
        assert error["message"] == "the model `broken` cannot be served: its object is corrupt"
        assert (error["type"], error["code"]) == ("server_error", "model_refused")
        assert reply.headers["x-should-retry"] == "false"


def test_an_ability_that_a_model_lacks(url: str) -> None:
    reply = post(url, GOOD | {"model": "mute"})
    assert (reply.status_code, error_of(reply)["message"]) == (400, "`mute` cannot generate; ask another")
    assert post(url, {"model": "mute", "input": "a"}, "classify").status_code == 400


def test_a_failure_shows_no_traceback(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "kinfold.serve"):
        replies = [post(url, GOOD | {"model": model}) for model in ("crash", "boom", "stump")]
    for reply in replies:
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert reply.headers["x-request-id"] in error_of(reply)["message"]
        assert reply.headers["x-request-id"] in caplog.text
    assert "RuntimeError: secret detail" in caplog.text
    assert "an answer ended without a finish reason" in caplog.text


def test_a_failure_within_a_stream_is_its_last_event(url: str, caplog: pytest.LogCaptureFixture) -> None:
    reply = post(url, GOOD | {"model": "boom", "stream": True})
    events = [event for event in reply.text.split("\n\n") if event]
    assert len(events) == 3
    assert '"code": "engine_failed"' in events[-1]
    assert "secret" not in reply.text
    assert "secret detail" in caplog.text
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model="boom", prompt="a", stream=True)
        with pytest.raises(openai.APIError, match="the engine failed"):
            list(stream)


def test_a_stream_that_is_refused_has_a_proper_status(url: str) -> None:
    assert post(url, GOOD | {"model": "nobody", "stream": True}).status_code == 404
    assert post(url, {"model": "nobody", "prompt": [1], "stream": True}).status_code == 404


def test_a_full_queue() -> None:
    engine = FakeEngine(slots=1, queue=1, delay=0.01)
    with served(engine) as url:

        async def many() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=30) as client:
                body = GOOD | {"max_tokens": 20}
                return await asyncio.gather(*(client.post(f"{url}/v1/completions", json=body) for _ in range(8)))

        replies = asyncio.run(many())
        refused = [reply for reply in replies if reply.status_code != 200]
        assert {reply.status_code for reply in refused} == {429}
        assert len(refused) == 6
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert error_of(refused[0])["type"] == "rate_limit_error"


def test_the_key() -> None:
    with served(FakeEngine(), api_key="sésame") as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sésame".encode()}):
            for route in ("/v1/models", "/metrics", "/nowhere", "/v1/completions"):
                reply = httpx.get(url + route, headers=headers)
                assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "base": "base"}
        good = {"Authorization": "bearer sésame".encode()}
        assert httpx.get(f"{url}/v1/models", headers=good).status_code == 200
    with served(FakeEngine(), api_key="sesame") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="sesame") as client:
        assert client.completions.create(model="movie", prompt="a", max_tokens=1).choices


def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(ServeError, match="the API key is empty"):
        create_app(FakeEngine(), api_key="")


def test_the_limit_of_a_body() -> None:
    with served(FakeEngine(), max_body_bytes=1000) as url:
        assert post(url, GOOD).status_code == 200
        large = json_of(GOOD | {"user": "x" * 1000})

        def chunked() -> Any:
            yield large[:500]
            yield large[500:]

        for content in (large, chunked()):
            reply = httpx.post(f"{url}/v1/completions", content=content, headers=JSON)
            assert (reply.status_code, error_of(reply)["code"]) == (413, "body_too_large")


def test_a_client_that_leaves_within_its_body(caplog: pytest.LogCaptureFixture) -> None:
    with served(FakeEngine()) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            sock.sendall(head + b"Content-Length: 100\r\n\r\n{")
            assert soon(lambda: "kinfold_requests_open 2.0" in httpx.get(f"{url}/metrics").text)
        assert soon(lambda: "kinfold_requests_open 1.0" in httpx.get(f"{url}/metrics").text)
    assert not caplog.records


def test_only_json_is_read(url: str) -> None:
    """A page in a browser may post text to a server on this machine without asking; JSON it may not."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = httpx.post(f"{url}/v1/completions", content=json_of(GOOD), headers={"Content-Type": kind})
        assert (reply.status_code, error_of(reply)["code"]) == (415, "unsupported_media_type")
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert httpx.post(f"{url}/v1/completions", content=json_of(GOOD), headers=charset).status_code == 200


def test_no_such_route(url: str) -> None:
    reply = httpx.get(f"{url}/v1/nothing")
    assert (reply.status_code, error_of(reply)["message"]) == (404, "there is no route `GET /v1/nothing`")
    reply = httpx.get(f"{url}/v1/completions")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_embeddings(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        made = client.embeddings.create(model="movie", input=["abc", "d"])  # the client asks for base64 and decodes it
        assert [row.embedding for row in made.data] == [[3.0, 0.25, -1.0], [1.0, 0.25, -1.0]]
        assert [row.index for row in made.data] == [0, 1]
        assert (made.usage.prompt_tokens, made.usage.total_tokens) == (4, 4)
        ids = client.embeddings.create(model="movie", input=[[1, 2], [3]], encoding_format="float")
        assert [row.embedding[0] for row in ids.data] == [2.0, 1.0]
    raw = post(url, {"model": "movie", "input": "ab", "encoding_format": "base64"}, "embeddings").json()
    assert base64.b64decode(raw["data"][0]["embedding"]) == struct.pack("<3f", 2.0, 0.25, -1.0)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "x" * 201}, "input"),
        ({"dimensions": 2}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_embeddings_that_cannot_be(url: str, change: dict[str, Any], param: str) -> None:
    reply = post(url, {"model": "movie", "input": "a"} | change, "embeddings")
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


def test_classes(url: str) -> None:
    reply = post(url, {"model": "movie", "input": ["abc", "d"]}, "classify").json()
    row = {"label": "good", "probs": [0.25, 0.75], "num_classes": 2, "labels": ["bad", "good"]}
    assert reply["data"] == [{"index": 0, **row}, {"index": 1, **row}]
    assert reply["usage"]["prompt_tokens"] == 4


def test_metrics() -> None:
    with served(FakeEngine()) as url:
        post(url, GOOD | {"max_tokens": 5})
        post(url, GOOD | {"max_tokens": 5, "stream": True})
        post(url, GOOD | {"model": "nobody"})
        post(url, GOOD | {"model": "broken"})
        post(url, {"model": "movie", "input": "abc"}, "embeddings")
        httpx.get(f"{url}/some/thing")
        wanted = {
            'kinfold_requests_total{model="movie",route="/v1/completions",status="200"} 2.0',
            'kinfold_requests_total{model="",route="/v1/completions",status="404"} 1.0',  # a name of the client's own
            'kinfold_requests_total{model="broken",route="/v1/completions",status="503"} 1.0',
            'kinfold_requests_total{model="",route="other",status="404"} 1.0',
            'kinfold_tokens_total{kind="prompt",model="movie"} 5.0',
            'kinfold_tokens_total{kind="answer",model="movie"} 10.0',
            "kinfold_first_token_seconds_count 2.0",
            'kinfold_request_seconds_count{route="/v1/completions"} 4.0',
            "kinfold_engine_running 0.0",
            "kinfold_engine_cache_hits_total 3.0",
            "kinfold_requests_open 1.0",  # this one
        }
        assert soon(lambda: wanted <= set(httpx.get(f"{url}/metrics").text.splitlines()))
        assert "nobody" not in httpx.get(f"{url}/metrics").text


def test_the_engine_is_closed_when_the_server_stops() -> None:
    engine = FakeEngine()
    with served(engine):
        assert engine.closed == []
    assert engine.closed == [True]
