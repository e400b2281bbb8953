"""What goes wrong, in OpenAI's words: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from kinfold.errors import BusyError, ServeError, UnknownModelError
from kinfold.serve.request import LONGEST_NAME, Engine

log = logging.getLogger("kinfold.serve")
RETRY_AFTER = 1  # seconds; a place in the batch frees within that, more often than not
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusedError(Exception):
    """A request that is not met.

    Args:
        status: of HTTP.
        message: what was given and what is allowed, for the client.
        code: OpenAI's word for it, or ours.
        param: the field at fault.
        headers: sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def refusal(error: Exception, engine: Engine, model: str | None) -> RefusedError:
    """How an error of the engine is told; one that is nobody's fault but ours is logged, and its text kept here."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, UnknownModelError):
        return unknown_model(model or "", [served.name for served in engine.models()])
    if isinstance(error, BusyError):
        return RefusedError(429, str(error), "queue_full", headers={"Retry-After": str(RETRY_AFTER)})
    if isinstance(error, ServeError):
        refused = next(
            (served for served in engine.models() if (served.name, served.state) == (model, "refused")), None
        )
        if refused is None:
            return RefusedError(400, f"{error}; {error.hint}" if error.hint else str(error), "not_served")
        message = f"the model `{refused.name}` cannot be served: {refused.reason or error}"
        return RefusedError(503, message, "model_refused", "model", {"x-should-retry": "false"})
    log.error("the engine failed", exc_info=error)
    return RefusedError(500, "the engine failed; the server's log says more", "engine_failed")


def unknown_model(name: str, names: list[str]) -> RefusedError:
    near = difflib.get_close_matches(name, names, 3) if len(name) <= LONGEST_NAME else []
    shown = name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "..."
    hint = f"near names: {', '.join(near)}" if near else "GET /v1/models lists those that are"
    return RefusedError(404, f"the model `{shown}` is not served; {hint}", "model_not_found", "model")


def too_long(prompt: int, answer: int, most: int, param: str) -> RefusedError:
    wanted = f"{prompt} in the input and {answer} for the answer" if answer else f"{prompt} in the input"
    message = f"this model's maximum context length is {most} tokens; the request asks for {wanted}"
    return RefusedError(400, message, "context_length_exceeded", param)


def invalid(error: RequestValidationError) -> RefusedError:
    """The first thing that is wrong with a body."""
    found = error.errors()[0]
    kind, context = found["type"], found.get("ctx", {})
    if kind == "json_invalid":
        return RefusedError(400, f"the body is no valid JSON: {context.get('error')}", "invalid_json")
    place = [str(part) for part in found["loc"][1:]]
    if kind == "unsupported":
        place.append(context["param"])
        return RefusedError(400, found["msg"], "unsupported_parameter", _path(place))
    if not place:
        return RefusedError(400, "the body must be a JSON object", "invalid_json")
    return RefusedError(400, f"`{_path(place)}`: {found['msg']}", "invalid_value", _path(place))


def _path(place: list[str]) -> str:
    """`messages.0.content` as OpenAI writes it: `messages[0].content`."""
    path = place[0]
    for part in place[1:]:
        path += f"[{part}]" if part.isdecimal() else f".{part}"
    return path


def http(error: HTTPException, route: str) -> RefusedError:
    """What the framework itself refuses; `route` is the method and the path."""
    if error.status_code == 400:
        return RefusedError(400, "the body is no valid JSON", "invalid_json")
    if error.status_code in (404, 405):
        return RefusedError(error.status_code, f"there is no route `{route}`", "no_such_route", headers=error.headers)
    return RefusedError(error.status_code, str(error.detail), headers=error.headers)
