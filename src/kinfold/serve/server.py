"""`kinfold serve`: a store's variants of one base behind an OpenAI-compatible address."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger("kinfold.serve")
EXTRA = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class Serving:
    """What a server that has begun says of itself.

    Attributes:
        url: its address.
        base: name of the base.
        models: names that requests may use, the base's first.
        refused: why others of the store are refused, by name.
        exposed: other machines may reach it, and no key is asked for.
    """

    url: str
    base: str
    models: list[str]
    refused: dict[str, str]
    exposed: bool
