"""POST /v1/embeddings and /v1/classify."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request

from kinfold.serve.answers import too_long
from kinfold.serve.generation import ids_of
from kinfold.serve.metrics import Metrics
from kinfold.serve.replies import Classification, Classified, Embedding, EmbeddingList, Usage, new_id
from kinfold.serve.request import Engine, Ids
from kinfold.serve.schema import EmbeddingRequest, PoolingRequest


def routes(engine: Engine, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    async def read(request: Request, body: PoolingRequest) -> tuple[list[Ids], Usage]:
        request.state.model = body.model
        inputs = await ids_of(engine, body.model, body.input, "input")
        longest = max(map(len, inputs))
        if longest > engine.max_tokens:
            raise too_long(longest, 0, engine.max_tokens, "input")
        return inputs, Usage.of(sum(map(len, inputs)))

    @router.post("/v1/embeddings")
    async def embed(request: Request, body: EmbeddingRequest) -> EmbeddingList:
        inputs, usage = await read(request, body)
        vectors = await engine.embed(body.model, inputs)
        metrics.tokens(body.model, usage.prompt_tokens)
        packed = body.encoding_format == "base64"
        data = [
            Embedding(index=index, embedding=_base64(vector) if packed else vector)
            for index, vector in enumerate(vectors)
        ]
        return EmbeddingList(model=body.model, data=data, usage=usage)

    @router.post("/v1/classify")
    async def classify(request: Request, body: PoolingRequest) -> Classification:
        inputs, usage = await read(request, body)
        found = await engine.classify(body.model, inputs)
        metrics.tokens(body.model, usage.prompt_tokens)
        data = [_classified(index, classes) for index, classes in enumerate(found)]
        return Classification(id=new_id("classify"), model=body.model, data=data, usage=usage)

    return router


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _classified(index: int, classes: dict[str, float]) -> Classified:
    return Classified(
        index=index,
        label=max(classes, key=lambda label: classes[label]),
        probs=list(classes.values()),
        num_classes=len(classes),
        labels=list(classes),
    )
