"""What the plug-in is told: environment variables, and the server's own command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinfold.errors import ServeError
from kinfold.family.peft_plan import VLLM_RANKS

VLLM_RANK = 16  # vLLM's own default of --max-lora-rank
TOLERANCE = 0.01
_CACHE_BYTES = 10 << 30

# vLLM shows the messages of its own loggers alone; below its name ours are among them
log = logging.getLogger("vllm.kinfold")


@dataclass(frozen=True)
class Settings:
    """How variants are served.

    Attributes:
        store: URL or folder of the store.
        base: directory of the base where `--model` does not lead to it; empty otherwise.
        cache: folder for decoded adapters.
        cache_bytes: bound on it; adapters in use stay.
        max_rank: the server's --max-lora-rank.
        tolerance: share of a delta's norm that may be missing from what is served.
        partial: serve what LoRA can carry, whatever it leaves behind.
        url: this server's own address, for the probe after a load; empty for none.
    """

    store: str
    base: str = ""
    cache: Path = Path("~/.cache/kinfold/vllm")
    cache_bytes: int = _CACHE_BYTES
    max_rank: int = VLLM_RANK
    tolerance: float = TOLERANCE
    partial: bool = False
    url: str = ""

    @classmethod
    def read(cls, env: Mapping[str, str] | None = None, argv: Sequence[str] | None = None) -> Settings | None:
        """From KINFOLD_STORE and KINFOLD_VLLM_...; None where no store is named.

        Raises:
            ServeError: a value is not what its variable takes.
        """
        env = os.environ if env is None else env
        store = env.get("KINFOLD_STORE", "")
        if not store:
            return None
        cache = Path(env.get("KINFOLD_VLLM_CACHE") or Path(env.get("KINFOLD_CACHE") or "~/.cache/kinfold") / "vllm")
        return cls(
            store=store,
            base=env.get("KINFOLD_VLLM_BASE", ""),
            cache=cache.expanduser(),
            cache_bytes=int(_number(env, "KINFOLD_VLLM_CACHE_GB", _CACHE_BYTES / (1 << 30), 1e6) * (1 << 30)),
            max_rank=_max_rank(env, sys.argv if argv is None else argv),
            tolerance=_number(env, "KINFOLD_VLLM_TOLERANCE", TOLERANCE, 1.0),
            partial=env.get("KINFOLD_VLLM_PARTIAL", "") not in ("", "0"),
            url=env.get("KINFOLD_VLLM_URL", "").rstrip("/"),
        )


def _number(env: Mapping[str, str], name: str, default: float, most: float) -> float:
    text = env.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise ServeError(f"{name} is `{text}`; it takes a number from 0 to {most:g}")
    return value


def _max_rank(env: Mapping[str, str], argv: Sequence[str]) -> int:
    """vLLM tells a resolver nothing of its own flags, so they are read where the user wrote them."""
    name = "KINFOLD_VLLM_MAX_LORA_RANK"
    text = env.get(name) or _flag(argv) or str(VLLM_RANK)
    if not text.isdecimal() or int(text) not in VLLM_RANKS:
        allowed = ", ".join(map(str, VLLM_RANKS))
        raise ServeError(f"the largest LoRA rank is given as `{text}`; vLLM takes {allowed}", hint=f"{name}=16")
    return int(text)


def _flag(argv: Sequence[str]) -> str:
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == "--max-lora-rank":
            return value if equals else "".join(argv[place + 1 : place + 2])
    return ""
