"""What requests may say: the OpenAI API as far as it is served. Null means the default, as it does there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, field_validator, model_validator
from pydantic_core import PydanticCustomError

Input = str | tuple[int, ...]  # a text, or the token ids of one
MOST_ANSWERS = 128  # of one request
MOST_INPUTS = 2048  # of one request for embeddings or classes
LARGEST_ID = 2**31

Neutral = Mapping[str, tuple[Any, ...]]
# Options that would change the answer and are not served: only values that ask for nothing are taken.
GENERATION: Neutral = {
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}
COMPLETION: Neutral = GENERATION | {"echo": (False,), "suffix": ("",), "response_format": ({"type": "text"},)}
CHAT: Neutral = GENERATION | {
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # without tools both ask for nothing
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
}
POOLING: Neutral = {"dimensions": (), "truncate_prompt_tokens": (), "normalize": (True,), "activation": (True,)}


def refuse(values: Any, neutral: Neutral) -> Any:
    """Drop nulls; name the first option that is not served."""
    if not isinstance(values, dict):
        return values
    values = {name: value for name, value in values.items() if value is not None}
    for name, allowed in neutral.items():
        if name in values and values[name] not in allowed:
            raise PydanticCustomError("unsupported", "`{param}` is not served", {"param": name})
    return values


def sound(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "holds half a surrogate pair, which is not text") from None
    return text


def as_inputs(value: Any) -> tuple[Input, ...]:
    """One text, several, token ids of one, or of several: always as several."""
    if isinstance(value, str):
        return (sound(value),)
    if isinstance(value, list) and value:
        if _are_ids(value):
            return (tuple(value),)
        if all(isinstance(item, str) for item in value):
            return tuple(sound(item) for item in value)
        if all(isinstance(item, list) and _are_ids(item) for item in value):
            return tuple(tuple(item) for item in value)
    raise PydanticCustomError("inputs", "takes a text, a list of texts, a list of token ids, or a list of such lists")


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item < LARGEST_ID for item in items)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Inputs = Annotated[tuple[Input, ...], PlainValidator(as_inputs)]
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=4)]


class Asked(BaseModel):
    """What every request has."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    include_usage: bool = False


class Sampled(Asked):
    """How an answer is drawn. `ignore_eos` is no option of OpenAI's; vLLM's benchmarks send it."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=MOST_ANSWERS)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stops = Field(default=[])
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _usage_is_of_streams(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            message = "`{param}` goes with `stream: true` only"
            raise PydanticCustomError("unsupported", message, {"param": "stream_options"})
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: Inputs
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        return refuse(values, COMPLETION)

    @model_validator(mode="after")
    def _bounded(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            message = "`{param}` is not served; every answer drawn is given back (`n`)"
            raise PydanticCustomError("unsupported", message, {"param": "best_of"})
        if len(self.prompt) * self.n > MOST_ANSWERS:
            message = "`{param}`: a request takes at most {most} answers (prompts times `n`)"
            raise PydanticCustomError("unsupported", message, {"param": "prompt", "most": MOST_ANSWERS})
        return self


def as_content(value: Any) -> str:
    """A message's text; parts are joined by line ends, as vLLM does."""
    if isinstance(value, str):
        return sound(value)
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("content", "takes a text or a list of text parts")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError("content", "takes parts of type `text` with a `text` only")
    return "\n".join(sound(part["text"]) for part in value)


class Message(BaseModel):
    """One turn. `developer` is what OpenAI calls `system` of late; templates know the older word."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(as_content)]

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        return refuse(values, {"tool_calls": ([],), "function_call": (), "audio": ()})

    def plain(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        return refuse(values, CHAT)

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            message = "`{param}` goes with `logprobs: true` only"
            raise PydanticCustomError("unsupported", message, {"param": "top_logprobs"})
        return self


class PoolingRequest(Asked):
    """POST /v1/classify; of OpenAI's, /v1/embeddings."""

    input: Inputs

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        return refuse(values, POOLING)

    @field_validator("input")
    @classmethod
    def _bounded(cls, value: tuple[Input, ...]) -> tuple[Input, ...]:
        if len(value) > MOST_INPUTS:
            raise PydanticCustomError("inputs", "takes at most {most} inputs", {"most": MOST_INPUTS})
        return value


class EmbeddingRequest(PoolingRequest):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"
