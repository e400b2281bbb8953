"""Sockets, and how a server stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kinfold.errors import ServeError
from kinfold.serve.http import is_loopback, listen, url_of

ROOT = Path(__file__).parents[2]
PROGRAM = textwrap.dedent("""
    import sys
    from fakes import FakeEngine
    from kinfold.serve.app import create_app
    from kinfold.serve.http import listen, server_of, url_of

    engine, sock = FakeEngine(delay=0.02, max_tokens=100_000), listen("127.0.0.1", 0)
    print(url_of(sock), flush=True)
    server_of(create_app(engine), grace=float(sys.argv[1])).run(sockets=[sock])
    print(engine.finished, engine.closed_early, engine.closed, flush=True)
""")


@contextmanager
def process(grace: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its URL."""
    places = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests" / "serve")))
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM, str(grace)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout is not None
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def stop_within_a_stream(grace: float, tokens: int, number: signal.Signals) -> tuple[str, str, int]:
    """What a stream gave whose server is told to stop after the first event; the server's last words and exit code."""
    text = ""
    with process(grace) as (child, url):
        body = {"model": "movie", "prompt": "a", "max_tokens": tokens, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as reply:
            events = reply.iter_text()
            text += next(events)
            child.send_signal(number)
            try:
                for event in events:
                    text += event
            except httpx.RemoteProtocolError:
                text += "(cut)"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        said, _ = child.communicate(timeout=30)
    return text, said.strip(), child.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_end_before_the_server_does(number: signal.Signals) -> None:
    text, said, code = stop_within_a_stream(grace=20, tokens=25, number=number)
    assert text.count("movie1-") == 25
    assert text.endswith("data: [DONE]\n\n")
    assert (said, code) == ("1 0 [True]", 0)


def test_a_request_that_takes_too_long_is_cut_off() -> None:
    text, said, code = stop_within_a_stream(grace=0.3, tokens=90_000, number=signal.SIGTERM)
    assert "[DONE]" not in text
    assert (said, code) == ("0 1 [True]", 0)


def test_an_address_that_is_taken_or_not_ours() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(ServeError, match=r"cannot listen on 127\.0\.0\.1 port"):
        listen("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(ServeError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)
    with pytest.raises(ServeError, match="from 0 to 65535, got 70000"):
        listen("127.0.0.1", 70_000)


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_addresses(host: str, loopback: bool) -> None:
    with listen(host, 0) as sock:
        assert is_loopback(sock) == loopback
        port = sock.getsockname()[1]
        assert url_of(sock) in (f"http://{host}:{port}", f"http://127.0.0.1:{port}", f"http://[::1]:{port}")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_six_bytes_more() -> None:
    try:
        sock = listen("::1", 0)
    except ServeError:
        pytest.skip("no IPv6 here")
    with sock:
        assert is_loopback(sock)
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"


def test_signals_are_as_before_once_a_server_has_stopped() -> None:
    from fakes import FakeEngine, served

    before = signal.getsignal(signal.SIGTERM)
    with served(FakeEngine()):
        assert threading.current_thread() is threading.main_thread()
    assert signal.getsignal(signal.SIGTERM) is before
