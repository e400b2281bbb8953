"""Whether a variant answers otherwise than its base: an adapter whose names do not fit changes nothing, in silence."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinfold.errors import ServeError

PROMPT = (3, 5, 7, 11, 13, 17, 19, 23)  # tokens that every vocabulary has
_SECONDS = 600.0  # the first request decodes the variant


@dataclass(frozen=True)
class Probed:
    """One variant.

    Attributes:
        name: as requests call it.
        state: `differs` from the base, is the `same`, or is `refused`.
        moved: largest difference of a prompt token's log-probability to the base's, in nats; None where refused.
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
        if self.state == "same":
            return "answers as the base does, and it is not the base: its adapter's names do not fit the served model"
        return f"differs from the base by up to {self.moved:.3g} nats a token"


def check(url: str, names: Sequence[str] = ()) -> list[Probed]:
    """Compare variants with the base on a server, on a fixed prompt of 8 tokens.

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
    first = _logprobs(url, base)
    noise = distance(first, _logprobs(url, base))  # of the server's own arithmetic
    return [_probe(url, name, first, noise) for name in names or [row["id"] for row in models if row.get("parent")]]


def distance(one: Sequence[float], two: Sequence[float]) -> float:
    """The largest difference between two lists of log-probabilities, nats."""
    return max((abs(a - b) for a, b in zip(one, two, strict=True)), default=0.0)


def unload(url: str, name: str) -> None:
    """Take an adapter out of a server, so that its resolvers are asked again.

    Raises:
        ServeError: the server does not answer, or has none of that name.
    """
    _ask(url, "/v1/unload_lora_adapter", {"lora_name": name})


def _probe(url: str, name: str, base: Sequence[float], noise: float) -> Probed:
    try:
        found = _logprobs(url, name)
    except ServeError as error:
        return Probed(name, "refused", why=str(error))
    moved = distance(base, found)
    return Probed(name, "same" if moved <= noise else "differs", moved)


def _logprobs(url: str, model: str) -> list[float]:
    """Of each prompt token but the first."""
    body = {"model": model, "prompt": list(PROMPT), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = _ask(url, "/v1/completions", body)
    try:
        rows = answer["choices"][0]["prompt_logprobs"]
        return [float(row[str(token)]["logprob"]) for token, row in zip(PROMPT[1:], rows[1:], strict=True)]
    except (KeyError, IndexError, TypeError, ValueError) as cause:
        raise ServeError(f"{url} gives no log-probabilities of a prompt; only vLLM's servers do") from cause


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
