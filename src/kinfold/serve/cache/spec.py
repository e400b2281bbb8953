"""Caches by their text: `full`, `quant:bits=4`, `ojakv:basis=F,ratio=.8`, `sentencekv:tokens_read=128`.

A module that offers a cache calls `register` with a name and a function from options to a factory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from transformers.cache_utils import Cache, DynamicCache

from kinfold.errors import CacheError
from kinfold.serve.cache.base import KVCache

Make = Callable[[Any, Any], Cache]
"""(model, tokenizer or None) -> a new cache for one request."""
Options = Mapping[str, str]
Config = TypeVar("Config", bound=BaseModel)
_KINDS: dict[str, Callable[[Options], Make]] = {}
_START = re.compile(r"^[a-z][a-z0-9]*(:|$)")


@dataclass(frozen=True)
class CacheSpec:
    """A kind of cache with its options read and checked.

    Attributes:
        text: as it was given.
        make: (model, tokenizer or None) -> a new cache for one request or conversation.
    """

    text: str
    make: Make


def register(name: str, read: Callable[[Options], Make]) -> None:
    """Offer the cache `name`; `read` checks the options and gives the factory."""
    _KINDS[name] = read


def parse_cache(text: str) -> CacheSpec:
    """One cache, such as `ojakv:basis=F,ratio=.8`.

    Raises:
        CacheError: no such cache, or an option that is not its own.
    """
    name, _, rest = text.partition(":")
    if name not in _KINDS:
        raise CacheError(f"there is no cache `{name}`; there are {', '.join(sorted(_KINDS))}")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key in options:
            raise CacheError(f"`{part}` in `{text}` is not one option=value", hint=f"{name}:option=value,option=value")
        options[key] = value
    return CacheSpec(text, _KINDS[name](options))


def parse_caches(text: str) -> list[CacheSpec]:
    """Several, separated by commas as their options are: `full,quant:bits=4,ojakv:basis=F,ratio=.8`.

    Raises:
        CacheError: as `parse_cache`.
    """
    parts: list[str] = []
    for part in text.split(","):
        if parts and not _START.match(part):
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return [parse_cache(part) for part in parts]


def attached(cache: Cache, model: Any) -> AbstractContextManager[Any]:
    """`cache.attached(model)`, or nothing to do for a cache of transformers itself."""
    return cache.attached(model) if isinstance(cache, KVCache) else nullcontext(cache)


def config_from(kind: type[Config], name: str, options: Mapping[str, Any], also: Sequence[str] = ()) -> Config:
    """A config from values or texts of its fields; `none` stands for None.

    Args:
        kind: of the config.
        name: of the cache.
        options: field -> value or text.
        also: further options of the cache, that the caller has read.

    Raises:
        CacheError: a field is not known, or its value not allowed.
    """
    unknown = [key for key in options if key not in kind.model_fields]
    if unknown:
        raise CacheError(f"`{name}` has no option `{unknown[0]}`; it has {', '.join([*also, *kind.model_fields])}")
    try:
        return kind.model_validate({key: None if value == "none" else value for key, value in options.items()})
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1]) or name
        raise CacheError(f"`{where}` of the cache `{name}`: {first['msg']}, given {first['input']!r}") from cause


def number_from(text: str | None, name: str) -> float | None:
    """The number that the option `name` was given; None where it was not.

    Raises:
        CacheError: it is no number.
    """
    try:
        return None if text is None else float(text)
    except ValueError as cause:
        raise CacheError(f"`{name}={text}` is no number") from cause


def _full(options: Options) -> Make:
    if options:
        raise CacheError("`full` has no options")
    return lambda model, tokenizer: DynamicCache(config=model.config)


register("full", _full)
