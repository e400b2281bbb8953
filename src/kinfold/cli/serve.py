"""`kinfold serve`: a store's variants behind an OpenAI-compatible address."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kinfold.cli.app import AsFormat, app
from kinfold.cli.output import emit, err, facts, say_hint

SHOWN = 20  # names in a line


@app.command
def serve(
    store: str,
    *,
    base: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[str | None, Parameter(env_var="KINFOLD_API_KEY")] = None,
    max_batch: int = 32,
    queue: int = 256,
    max_tokens: int | None = None,
    variant_memory: str = "2GB",
    pin: tuple[str, ...] = (),
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "cpu",
    cache: str = "full",
    store_cache: Path | None = None,
    max_body: str = "1MiB",
    refresh: float = 5.0,
    grace: float = 30.0,
    format: AsFormat = "human",
) -> None:
    """Answer OpenAI's API for a base and every variant of it in a store, mixed in one batch.

    Example: kinfold serve STORE --base BASE --port 8000

    Parameters
    ----------
    store
        A folder or an fsspec URL.
    base
        Name of a model in the store, or a model directory.
    host
        Address to listen on; another than this machine's own asks for an --api-key.
    port
        Of the address; 0 takes any free one.
    api_key
        What requests must carry as `Authorization: Bearer KEY`.
    max_batch
        Rows that are computed at once.
    queue
        Requests that may wait for that; more are sent away with status 429.
    max_tokens
        Of prompt and answer together; what the model's positions allow where not given.
    variant_memory
        For loaded variants, beside the base (2GB); those not asked for longest make way.
    pin
        A variant that does not make way once it is loaded; may be repeated.
    dtype
        auto is the base's own.
    device
        cpu, cuda, cuda:1, ...
    cache
        Of keys and values: full, or a compressed one for each answer, such as quant:bits=4, ojakv:basis=FILE or
        sentencekv:tokens_read=256; then rows are computed one by one.
    store_cache
        Folder for local copies of what the store holds.
    max_body
        The largest request.
    refresh
        Seconds between looks at the store for new, changed and removed variants.
    grace
        Seconds that running requests have to end when the server is told to stop.
    format
        human or json.
    """
    from kinfold.serve.server import Serving, serve

    def show(serving: Serving) -> None:
        emit(serving, format, lambda: _show(serving, api_key is not None))
        sys.stdout.flush()  # whoever reads it from a pipe waits for it

    serve(
        store,
        base=base,
        host=host,
        port=port,
        api_key=api_key,
        max_batch=max_batch,
        queue=queue,
        max_tokens=max_tokens,
        variant_memory=variant_memory,
        pin=pin,
        dtype=dtype,
        device=device,
        cache=cache,
        store_cache=store_cache,
        max_body=max_body,
        refresh=refresh,
        grace=grace,
        ready=show,
    )


def _show(serving: Any, keyed: bool) -> None:
    """A `Serving`."""
    if serving.warning:
        err.print(f"warning: {serving.warning}: give one with --api-key", style="bold red")
    more = len(serving.models) - SHOWN
    shown = ", ".join(serving.models[:SHOWN]) + (f" and {more} more" if more > 0 else "")
    facts([("address", serving.url), ("base", serving.base), ("models", shown)])
    say_hint(_curl(serving, keyed))


def _curl(serving: Any, keyed: bool) -> str:
    """A line to try."""
    generates = "generate" in serving.abilities
    route, text = ("completions", "prompt") if generates else ("embeddings", "input")
    body = json.dumps({"model": serving.models[-1], text: "Once upon a time"})
    key = ' -H "Authorization: Bearer $KINFOLD_API_KEY"' if keyed else ""
    return f"curl {serving.url}/v1/{route}{key} -H 'Content-Type: application/json' -d '{body}'"
