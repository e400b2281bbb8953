"""What answers look like: OpenAI's shapes, and vLLM's for classes."""

from __future__ import annotations

import time
import uuid
from typing import Literal

from pydantic import BaseModel, Field

from kinfold.serve.request import Served

Finish = Literal["stop", "length"]


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, answer: int = 0) -> Usage:
        return cls(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


class ModelCard(BaseModel):
    """OpenAI's four fields, vLLM's `parent` and `max_model_len`, and what else is known."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kinfold"
    parent: str | None
    max_model_len: int
    digest: str
    abilities: list[str]
    state: str
    reason: str

    @classmethod
    def of(cls, model: Served, max_tokens: int) -> ModelCard:
        return cls(
            id=model.name,
            created=model.created,
            parent=model.parent,
            max_model_len=max_tokens,
            digest=model.digest,
            abilities=list(model.abilities),
            state=model.state,
            reason=model.reason,
        )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class CompletionLogprobs(BaseModel):
    """One entry a token; `text_offset` in characters of the answer."""

    text_offset: list[int] = []
    token_logprobs: list[float] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float]] = []


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Completion(BaseModel):
    """An answer whole, and also each step of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(default_factory=now)
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=now)
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatStep(BaseModel):
    index: int
    delta: dict[str, str]  # `role` at the first step, `content`, empty at the last
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(default_factory=now)
    model: str
    choices: list[ChatStep]
    usage: Usage | None = None


class Embedding(BaseModel):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str  # numbers, or base64 of little-endian float32


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class Classified(BaseModel):
    """vLLM's fields, and the names that `probs` belong to."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    labels: list[str]


class Classification(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int = Field(default_factory=now)
    model: str
    data: list[Classified]
    usage: Usage
