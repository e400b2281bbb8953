"""Around everything: an id for each request, its place in the metrics, and no traceback for the client."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinfold.serve.answers import RefusedError, log
from kinfold.serve.metrics import Metrics


class Watched:
    """Counts a request when it ends, however it ends.

    Routes leave the model's name, and a status that came after the headers, in `scope["state"]`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, identity = time.perf_counter(), uuid.uuid4().hex
        state: dict[str, Any] = {"started": started, "model": None, "status": None}
        scope["state"], status = state, 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = identity
            await send(message)

        self._metrics.open.inc()
        try:
            await self.app(scope, receive, note)
        except Exception:
            log.exception("request %s to %s failed", identity, scope["path"])
            state["status"] = 500
            if not status:
                message = f"the server failed; its log says more at request {identity}"
                await RefusedError(500, message, "server_failed").response(scope, receive, note)
        finally:
            self._metrics.open.dec()
            seconds = time.perf_counter() - started
            self._metrics.answered(scope["path"], state["model"], state["status"] or status, seconds)
