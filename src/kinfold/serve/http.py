"""A listening socket, and a server on it that ends what runs before it stops."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from kinfold.errors import ServeError

KEEP_ALIVE = 5  # seconds that an idle connection stays open


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        ServeError: the address is not this machine's, or taken, or no port.
    """
    if not 0 <= port < 2**16:  # `getaddrinfo` would cut it down in silence
        raise ServeError(f"a port is a number from 0 to 65535, got {port}", hint="--port 8000")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ServeError(f"cannot listen on {host} port {port}: {error}", hint="--port 0 takes any free port") from None


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(sock: socket.socket) -> bool:
    host = sock.getsockname()[0]
    return host == "::1" or host.startswith("127.")


class Server(uvicorn.Server):
    """Stops on SIGINT and SIGTERM: takes no new connections, ends running requests, closes the app.

    A second SIGINT stops at once. Unlike uvicorn's own it returns after that, where that one dies of the signal again.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def server_of(app: FastAPI, *, grace: float) -> Server:
    """A server of an app.

    Args:
        app: from `create_app`.
        grace: seconds that running requests have to end once it is told to stop; then they are cut off.
    """
    return Server(
        uvicorn.Config(
            app,
            access_log=False,  # /metrics counts requests
            log_config=None,
            log_level="warning",
            lifespan="on",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=grace,  # type: ignore[arg-type]  # seconds; a float will do
        )
    )
