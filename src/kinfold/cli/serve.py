"""`kinfold serve`: a store's variants behind an OpenAI-compatible address."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from kinfold.cli.app import AsFormat, app
from kinfold.cli.output import emit, err, facts, out, say_hint

SHOWN = 20  # names in a line


@app.command
def serve(
    store: str,
    *,
    base: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[str | None, Parameter(env_var="KINFOLD_API_KEY")] = None,
    max_batch: int = 16,
    queue: int = 256,
    variant_memory: str = "2GB",
    pin: tuple[str, ...] = (),
    dtype: str = "auto",
    device: str = "auto",
    cache: str | None = None,
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
        Answers that are generated at the same time.
    queue
        Requests that may wait for that; more are sent away with status 429.
    variant_memory
        Room for variants beside the base; those not asked for longest make way.
    pin
        A variant that is loaded at the start and never makes way; may be repeated.
    dtype
        To run in: auto is the base's own, or float32, bfloat16, float16.
    device
        cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.
    cache
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
    from kinfold.serve.server import serve

    serve(
        store,
        base=base,
        host=host,
        port=port,
        api_key=api_key,
        max_batch=max_batch,
        queue=queue,
        variant_memory=variant_memory,
        pin=pin,
        dtype=dtype,
        device=device,
        cache=cache,
        max_body=max_body,
        refresh=refresh,
        grace=grace,
        ready=lambda serving: emit(serving, format, lambda: _show(serving, api_key is not None)),
    )


def _show(serving: Any, keyed: bool) -> None:
    """A `Serving`."""
    if serving.exposed:
        err.print("warning: other machines can reach this server, and it asks for no key (--api-key)", style="bold red")
    shown = ", ".join(serving.models[:20]) + (
        f" and {len(serving.models) - 20} more" if len(serving.models) > 20 else ""
    )
    facts([("address", serving.url), ("base", serving.base), ("models", shown)])
    for name, reason in serving.refused.items():
        err.print(f"refused: {name}: {reason}", markup=False)
    key = ' -H "Authorization: Bearer $KINFOLD_API_KEY"' if keyed else ""
    body = f'{{"model": "{serving.models[-1]}", "prompt": "Once upon", "max_tokens": 16}}'
    out.file.flush()
    say_hint(f"curl {serving.url}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'")
