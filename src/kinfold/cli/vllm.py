"""The commands for those who serve with vLLM: `kinfold vllm ...`."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App

from kinfold.cli.app import AsFormat, Switch, app
from kinfold.cli.output import DONE, FOUND, emit, say_hint, table

vllm = App(name="vllm", help="Serve the variants of a store with vLLM.")
app.command(vllm)


@dataclass(frozen=True)
class _Plan:
    """What `plan` prints as JSON."""

    variants: list[Any]
    max_lora_rank: int | None
    command: str


@vllm.command
def plan(
    store: str,
    *,
    base: Path,
    rank: int = 16,
    partial: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Say which variants of a store vLLM can serve as LoRA, which not and why, and the command that serves them.

    Example: kinfold vllm plan STORE --base BASE

    Parameters
    ----------
    store
        Folder or URL of the store.
    base
        Model directory of the base.
    rank
        The most for variants that are not kept as factors; factors stay as they are.
    partial
        Serve what LoRA can carry, whatever it leaves behind.
    format
        human or json.
    """
    from kinfold.serve.vllm.adapter import flag_for
    from kinfold.serve.vllm.settings import Settings
    from kinfold.serve.vllm.variants import StoredVariants, roads

    with tempfile.TemporaryDirectory(prefix="kinfold-") as scratch:
        settings = Settings(store, cache=Path(scratch), max_rank=rank, partial=partial)
        found = roads(StoredVariants(settings), str(base), Path(scratch))
    flag = flag_for(max((road.rank for road in found), default=1))
    words = [f"KINFOLD_STORE={store}", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"]
    words += ["KINFOLD_VLLM_PARTIAL=1"] if partial else []
    words += ["vllm", "serve", str(base), "--enable-lora", "--max-lora-rank", str(flag)]
    report = _Plan(found, flag, shlex.join(words))

    emit(report, format, lambda: _show(report))


def _show(report: _Plan) -> None:
    rows = [[road.name, road.way, str(road.rank or ""), road.why] for road in report.variants]
    table(["variant", "served as", "rank", "why"], rows, left=4)
    if any(road.way == "lora" for road in report.variants):
        say_hint(report.command)
    elif report.variants:
        say_hint(report.variants[0].hint)


@vllm.command
def check(url: str, *names: str, format: AsFormat = "human") -> int:
    """Ask a running server whether variants answer otherwise than the base; exit with 3 when one does not.

    Example: kinfold vllm check http://localhost:8000 movie

    Parameters
    ----------
    url
        Of the server.
    names
        Variants; all that the server lists where none is given.
    format
        human or json.
    """
    from kinfold.serve.vllm.probe import check as ask

    rows = ask(url, names)

    emit(
        _Checked(rows), format, lambda: table(["variant", "answer"], [[row.name, row.sentence] for row in rows], left=2)
    )
    return DONE if all(row.state == "differs" for row in rows) else FOUND


@dataclass(frozen=True)
class _Checked:
    """What `check` prints as JSON."""

    variants: list[Any]
