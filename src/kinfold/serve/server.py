"""`kinfold serve`: the variants of a store behind an OpenAI-compatible address."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinfold.budget.target import Budget
from kinfold.errors import BudgetError, MissingExtraError, ServeError
from kinfold.serve.stored import StoredVariants, base_of
from kinfold.store import Store

if TYPE_CHECKING:
    from kinfold.serve.engine import ModelEngine

log = logging.getLogger("kinfold.serve")
EXTRA = ("fastapi", "uvicorn", "prometheus_client")
OPEN_TO_ALL = "other machines can reach this server, and it asks for no API key"


@dataclass(frozen=True)
class Serving:
    """What a server says of itself before its first request.

    Attributes:
        url: its address.
        base: name of the base.
        models: names that requests may use, the base's first.
        abilities: of the base: `generate`, `embed`, `classify`.
        warning: what its owner should know; empty where all is well.
    """

    url: str
    base: str
    models: list[str]
    abilities: list[str]
    warning: str


def serve(
    store: str | Path,
    *,
    base: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    max_batch: int = 32,
    queue: int = 256,
    max_tokens: int | None = None,
    variant_memory: str | int = "2GB",
    pin: Sequence[str] = (),
    dtype: str = "auto",
    device: str = "cpu",
    cache: str = "full",
    store_cache: str | Path | None = None,
    max_body: str | int = "1MiB",
    refresh: float = 5.0,
    grace: float = 30.0,
    ready: Callable[[Serving], None] | None = None,
) -> None:
    """Serve a base and every variant of it in a store, until SIGINT or SIGTERM.

    Args:
        store: a folder or an fsspec URL.
        base: the name of a model in the store, or a model directory.
        host: address to listen on.
        port: of the address; 0 takes any free one.
        api_key: what requests must carry as `Authorization: Bearer KEY`.
        max_batch: rows that are computed at once.
        queue: requests that may wait for that; more get status 429.
        max_tokens: of prompt and answer together; None takes what the model's positions allow.
        variant_memory: bytes of loaded variants, beside the base: a number or a text such as `2GB`.
        pin: variants that are not evicted once they are loaded.
        dtype: `auto` is the base's own; `float32`, `bfloat16` or `float16`.
        device: as torch names it.
        cache: of keys and values: `full`, or a compressed one for each answer, such as `quant:bits=4`,
            `ojakv:basis=FILE` or `sentencekv:tokens_read=256`; then rows are computed one by one.
        store_cache: folder for local copies of what the store holds.
        max_body: bytes of the largest request: a number or a text such as `1MiB`.
        refresh: seconds between looks at the store.
        grace: seconds that running requests have to end when the server is told to stop.
        ready: called once the address is open.

    Raises:
        MissingExtraError: fastapi, uvicorn or prometheus_client is not installed.
        StoreError: there is no store, or its copy of the base is damaged.
        CheckpointError: the base cannot be read.
        ServeError: the base or the address cannot be served, or an option is not its own.
    """
    for package in EXTRA:
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    from kinfold.serve.app import create_app
    from kinfold.serve.cache import parse_cache
    from kinfold.serve.http import is_loopback, listen, server_of, url_of

    room, most = _bytes("variant_memory", variant_memory), _bytes("max_body", max_body)
    if refresh <= 0 or grace < 0:
        raise ServeError(f"refresh is {refresh} seconds and grace {grace}; above 0, and 0 or more, are allowed")
    kept = None if cache == "full" else parse_cache(cache)
    opened = Store.open(store, cache=store_cache)
    name, directory = base_of(opened, base)
    options = {"max_batch": max_batch, "queue": queue, "max_tokens": max_tokens, "poll_seconds": refresh, "cache": kept}
    with (
        closing(listen(host, port)) as sock,  # before the base is loaded: a port that is taken is told at once
        _engine(opened, name, directory, dtype, device, cache_bytes=room, pins=pin, **options) as engine,
    ):
        app = create_app(engine, api_key=api_key, max_body_bytes=most)
        served = engine.models()
        _check_pins(pin, [model.name for model in served])
        warning = "" if api_key is not None or is_loopback(sock) else OPEN_TO_ALL
        if ready is not None:
            ready(Serving(url_of(sock), name, [model.name for model in served], list(served[0].abilities), warning))
        elif warning:
            log.warning(warning)
        server_of(app, grace=grace).run(sockets=[sock])


@contextmanager
def _engine(store: Store, name: str, directory: Path, dtype: str, device: str, **options: Any) -> Iterator[ModelEngine]:
    """The base loaded, with the store's variants; stopped at the end, whatever happens."""
    from kinfold.serve.engine import ModelEngine
    from kinfold.serve.live import LiveModel

    live = LiveModel.open(directory, dtype=dtype, device=device)
    engine = ModelEngine(live, StoredVariants(store, live.base.fingerprint), name=name, **options)
    try:
        yield engine
    finally:
        asyncio.run(engine.close(drain=False))  # once more does no harm


def _bytes(option: str, given: str | int) -> int:
    """A size as budgets spell it.

    Raises:
        ServeError: it is no size.
    """
    try:
        found = Budget.parse(given)
    except BudgetError:
        found = None
    if found is None or found.kind != "bytes":
        raise ServeError(f"{option} is `{given}`; a size such as `2GB` or `512MiB` is allowed")
    return int(found.value)


def _check_pins(pin: Sequence[str], names: Sequence[str]) -> None:
    for name in pin:
        if name not in names:
            near = difflib.get_close_matches(name, names, 3)
            hint = f"near names: {', '.join(near)}" if near else "kinfold store ls"
            raise ServeError(f"there is no variant `{name}` of this base to pin", hint=hint)
