"""What a request must pass before any route sees it: the key, the size of its body, a client that is still there."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinfold.serve.answers import RefusedError

OPEN = {"/health"}  # for probes, which carry no key
GONE = 499  # nginx's status for a client that hung up


class Keyed:
    """Every route but /health wants `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app, self._key = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._fits(Headers(scope=scope)):
            refused = RefusedError(401, "no API key was given, or a wrong one", "invalid_api_key")
            refused.headers = {"WWW-Authenticate": "Bearer"}
            await refused.response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _fits(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # the time of the comparison tells nothing about the key
        return hmac.compare_digest(given.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"


class Attended:
    """Reads the body up to a limit, and cancels the work on a request whose client hung up.

    Cancelled work closes its answers, which frees their places in the batch.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app, self._most = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except RefusedError as refused:
            await refused.response(scope, receive, send)
            return
        if body is not None:
            await self._attend(scope, body, receive, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None if the client hung up before its end."""
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self._most:
            raise self._too_large()
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._most:  # a chunked body declares no length
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                break
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if size and kind != "application/json":  # a page in a browser may send anything else without asking
            raise RefusedError(
                415, "the body must be sent as `Content-Type: application/json`", "unsupported_media_type"
            )
        return b"".join(parts)

    def _too_large(self) -> RefusedError:
        message = f"the body is larger than the {self._most} bytes that are taken"
        return RefusedError(413, message, "body_too_large", headers={"Connection": "close"})

    async def _attend(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        answered = asyncio.Event()

        async def give() -> Message:
            return pending.pop() if pending else await receive()

        async def note(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()

        work = asyncio.ensure_future(self.app(scope, give, note))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or answered.is_set():  # after the answer's end the server reports a hang-up too
                await work
            else:
                scope.setdefault("state", {})["status"] = GONE
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
