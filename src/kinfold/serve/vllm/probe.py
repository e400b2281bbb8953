"""Whether a variant answers otherwise than its base: an adapter whose names do not fit changes nothing, in silence."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinfold.errors import ServeError

PROMPTS = ([3, 5, 7, 11], [13, 17, 19, 23, 29], [31])  # tokens that every vocabulary has
TOP = 5  # alternatives; servers give up to 20
_QUIET = 0.1  # nats that a base may differ from itself: half-precision sums in batches of other sizes
_TRIES = 5
Tops = Sequence[Mapping[str, float]]
_SECONDS = 600.0  # the first request decodes the variant


@dataclass(frozen=True)
class Probed:
    """One variant.

    Attributes:
        name: as requests call it.
        state: `differs` from the base, is the `same`, is `refused`, or `unsure` where the base itself does not answer
            twice alike.
        moved: largest difference of a likely next token's log-probability to the base's, nats; None where refused.
        why: the server's words, where refused.
    """

    name: str
    state: str
    moved: float | None = None
    why: str = ""

    @property
    def sentence(self) -> str:
        if self.state == "refused":
            return f"is refused: {self.why}"
        if self.state == "unsure":
            return "cannot be compared: the base answered differently each time; ask again when the server is idle"
        if self.state == "same":
            return "answers as the base does, and it is not the base: its adapter's names do not fit the served model"
        return f"differs from the base by up to {self.moved:.3g} nats"


def check(url: str, names: Sequence[str] = ()) -> list[Probed]:
    """Compare variants with the base on a server, by the likeliest next tokens of three fixed prompts.

    Prompts' own log-probabilities would say more from one request, but vLLM 0.32 applies an adapter on `lm_head` to the
    wrong rows of them, and its CPU engine ends.

    Args:
        url: of an OpenAI-compatible vLLM server, such as http://localhost:8000.
        names: variants; none for all that the server lists.

    Raises:
        ServeError: the server does not answer, or not as vLLM does.
    """
    models = _ask(url, "/v1/models")["data"]
    base = next((row["id"] for row in models if not row.get("parent")), None)
    if base is None:
        raise ServeError(f"{url} lists no base model")
    return [_probe(url, name, base) for name in names or [row["id"] for row in models if row.get("parent")]]


def distance(one: Tops, two: Tops) -> float:
    """The largest difference of a log-probability, nats; a token that one side does not list counts as its least."""
    return max(
        (abs(_of(a, token) - _of(b, token)) for a, b in zip(one, two, strict=True) for token in {*a, *b}), default=0.0
    )


def _of(tops: Mapping[str, float], token: str) -> float:
    return tops.get(token, min(tops.values(), default=0.0))


def unload(url: str, name: str) -> None:
    """Take an adapter out of a server, so that its resolvers are asked again.

    Raises:
        ServeError: the server does not answer, or has none of that name.
    """
    _ask(url, "/v1/unload_lora_adapter", {"lora_name": name})


def _probe(url: str, name: str, base: str) -> Probed:
    """Between two answers of the base; again where these differ, for a busy server may mix up its batches."""
    moved = None
    for _ in range(_TRIES):
        before = _logprobs(url, base)
        try:
            found = _logprobs(url, name)
        except ServeError as error:
            return Probed(name, "refused", why=str(error))
        noise = distance(before, _logprobs(url, base))
        moved = distance(before, found)
        if noise <= _QUIET:
            return Probed(name, "same" if moved <= noise else "differs", moved)
    return Probed(name, "unsure", moved)


def _logprobs(url: str, model: str) -> Tops:
    """Of the likeliest first tokens after each prompt."""
    body = {"model": model, "prompt": PROMPTS, "max_tokens": 1, "temperature": 0, "logprobs": TOP}
    answer = _ask(url, "/v1/completions", body | {"return_tokens_as_token_ids": True})
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        rows = [
            {str(token): float(value) for token, value in c["logprobs"]["top_logprobs"][0].items()} for c in choices
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as cause:
        raise ServeError(f"{url} gives no log-probabilities; it is no server of vLLM's kind") from cause
    if len(rows) != len(PROMPTS):
        raise ServeError(f"{url} answers {len(rows)} of {len(PROMPTS)} prompts")
    return rows


def _ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    key = os.environ.get("VLLM_API_KEY", "")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            text = reply.read()
        return json.loads(text) if path != "/v1/unload_lora_adapter" else text
    except urllib.error.HTTPError as cause:
        with cause:
            raise ServeError(f"{cause.code} {_words(cause.read())}") from cause
    except (OSError, ValueError) as cause:
        raise ServeError(
            f"`{url}` does not answer: {cause}", hint="is the server up, and is this its address?"
        ) from cause


def _words(reply: bytes) -> str:
    """What an error's body says."""
    try:
        content = json.loads(reply)
        return str(content["error"]["message"] if "error" in content else content["message"])
    except (ValueError, KeyError, TypeError):
        return reply[:500].decode(errors="replace")
