"""The HTTP app: OpenAI's routes, /v1/classify, /health and /metrics, over any engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from kinfold.errors import ServeError
from kinfold.serve import answers, completions, pooling
from kinfold.serve.limits import Attended, Keyed
from kinfold.serve.metrics import Metrics
from kinfold.serve.replies import ModelCard, ModelList
from kinfold.serve.request import Engine
from kinfold.serve.watch import Watched

MAX_BODY_BYTES = 2**20


def create_app(engine: Engine, *, api_key: str | None = None, max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """An app that answers for `engine`, and closes it when the server stops.

    Args:
        engine: the base and its variants.
        api_key: what requests must carry as `Authorization: Bearer KEY`; /health is open. None lets everybody in.
        max_body_bytes: a larger body is refused unread.

    Raises:
        ServeError: the key is empty.
    """
    if api_key is not None and not api_key:
        raise ServeError("the API key is empty", hint="give a key, or none")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await engine.close(drain=True)

    app = FastAPI(title="Kinfold", lifespan=lifespan, openapi_url=None)
    metrics = Metrics(engine)
    _add_plain_routes(app, engine, metrics)
    app.include_router(completions.routes(engine, metrics))
    app.include_router(pooling.routes(engine, metrics))
    _add_errors(app, engine)
    app.add_middleware(Attended, max_body_bytes=max_body_bytes)
    if api_key is not None:
        app.add_middleware(Keyed, api_key=api_key)
    app.add_middleware(Watched, metrics=metrics)  # the last added is the outermost
    return app


def _add_plain_routes(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "base": engine.base}

    @app.get("/metrics")
    async def told() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[ModelCard.of(model, engine.max_tokens) for model in engine.models()])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        found = {model.name: model for model in engine.models()}
        if name not in found:
            raise answers.unknown_model(name, list(found))
        return ModelCard.of(found[name], engine.max_tokens)


def _add_errors(app: FastAPI, engine: Engine) -> None:
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, answers.RefusedError)
        return error.response

    async def of_engine(request: Request, error: Exception) -> Response:
        return answers.refusal(error, engine, request.state.model).response

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answers.invalid(error).response

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answers.http(error, f"{request.method} {request.url.path}").response

    app.add_exception_handler(answers.RefusedError, refused)
    app.add_exception_handler(ServeError, of_engine)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
