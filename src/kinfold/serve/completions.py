"""POST /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from kinfold.serve import logprobs
from kinfold.serve.generation import Job, ids_of, sampling_of, stream
from kinfold.serve.metrics import Metrics
from kinfold.serve.replies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatStep,
    Completion,
    CompletionChoice,
    Usage,
    new_id,
    now,
)
from kinfold.serve.request import Chunk, Engine
from kinfold.serve.schema import ChatRequest, CompletionRequest

COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat goes on as long as there is room


def routes(engine: Engine, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: Request, body: CompletionRequest) -> Response:
        request.state.model = body.model
        prompts = await ids_of(engine, body.model, body.prompt, "prompt")
        sampling = [
            sampling_of(body, ids, engine, most=body.max_tokens, default=COMPLETION_TOKENS, logprobs=body.logprobs)
            for ids in prompts
        ]
        job = Job(engine, metrics, request, body.model, prompts, sampling, body.n)
        if body.stream:
            return await stream(completion_events(job, body), job)
        choices = [_completion_choice(number, chunks, body) for number, chunks in enumerate(await job.whole())]
        return _json(Completion(id=new_id("cmpl"), model=body.model, choices=choices, usage=_usage(job)))

    @router.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        request.state.model = body.model
        ids = await engine.chat(body.model, [message.plain() for message in body.messages])
        most = body.max_completion_tokens or body.max_tokens
        told = (body.top_logprobs or 0) if body.logprobs else None
        sampling = sampling_of(body, ids, engine, most=most, default=None, logprobs=told)
        job = Job(engine, metrics, request, body.model, [ids], [sampling], body.n)
        if body.stream:
            return await stream(chat_events(job, body), job)
        choices = [_chat_choice(number, chunks, body) for number, chunks in enumerate(await job.whole())]
        return _json(ChatCompletion(id=new_id("chatcmpl"), model=body.model, choices=choices, usage=_usage(job)))

    return router


def _json(reply: Any) -> JSONResponse:
    return JSONResponse(reply.model_dump())


def _usage(job: Job) -> Usage:
    return Usage.of(job.prompt_tokens, job.answer_tokens)


def _text(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def _completion_choice(number: int, chunks: Sequence[Chunk], body: CompletionRequest, offset: int = 0) -> Any:
    return CompletionChoice(
        index=number,
        text=_text(chunks),
        logprobs=None if body.logprobs is None else logprobs.of_completion(chunks, offset),
        finish_reason=_finish(chunks),
    )


def _chat_choice(number: int, chunks: Sequence[Chunk], body: ChatRequest) -> ChatChoice:
    told = logprobs.of_chat(chunks) if body.logprobs else None
    message = ChatMessage(content=_text(chunks))
    return ChatChoice(index=number, message=message, logprobs=told, finish_reason=_finish(chunks))


def _finish(chunks: Sequence[Chunk]) -> Any:
    return chunks[-1].finish


async def completion_events(job: Job, body: CompletionRequest) -> AsyncGenerator[str]:
    """A step a chunk, then the usage if it was asked for."""
    head: dict[str, Any] = {"id": new_id("cmpl"), "created": now(), "model": body.model}
    written = [0] * job.count  # characters
    async with aclosing(job.chunks()) as chunks:
        async for number, chunk in chunks:
            choice = _completion_choice(number, [chunk], body, written[number])
            written[number] += len(chunk.text)
            if chunk.text or chunk.finish or chunk.logprob is not None:
                yield Completion(**head, choices=[choice]).model_dump_json()
    if body.include_usage:
        yield Completion(**head, choices=[], usage=_usage(job)).model_dump_json()


async def chat_events(job: Job, body: ChatRequest) -> AsyncGenerator[str]:
    """Each answer: its role, a step a chunk, an empty step with the reason of its end; then the usage."""
    head: dict[str, Any] = {"id": new_id("chatcmpl"), "created": now(), "model": body.model}

    def step(number: int, delta: dict[str, str], **more: Any) -> str:
        return ChatChunk(**head, choices=[ChatStep(index=number, delta=delta, **more)]).model_dump_json()

    begun: set[int] = set()
    async with aclosing(job.chunks()) as chunks:
        async for number, chunk in chunks:
            if number not in begun:
                begun.add(number)
                yield step(number, {"role": "assistant", "content": ""})
            told = logprobs.of_chat([chunk]) if body.logprobs else None
            if chunk.text or (told and told.content):
                yield step(number, {"content": chunk.text}, logprobs=told)
            if chunk.finish:
                yield step(number, {}, finish_reason=chunk.finish)
    if body.include_usage:
        yield ChatChunk(**head, choices=[], usage=_usage(job)).model_dump_json()
