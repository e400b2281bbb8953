"""The commands on families: fold, unfold, family add, family remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App

from kinfold.cli import show_family
from kinfold.cli.app import AsFormat, Output, Switch, app, named_paths
from kinfold.cli.output import emit
from kinfold.errors import FamilyError

family = App(name="family", help="Put a member into a family, or take one out.", help_format="plaintext")
app.command(family)


@app.command
def fold(
    *members: str,
    base: Path,
    output: Output,
    method: Literal["auto", "rmm", "jd", "truncsvd", "packs"] = "auto",
    budget: str = "1/3",
    preset: Literal["paper"] | None = None,
    rank: str = "auto",
    directions: str = "auto",
    dtype: Literal["float16", "float32"] = "float16",
    low_rank: Annotated[bool, Switch] = False,
    dominance: Literal["warn", "refuse", "off"] = "warn",
    seed: int = 0,
    overwrite: Annotated[bool, Switch] = False,
    dry_run: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Keep several variants of one base in one file, each of which can be unfolded again.

    Example: kinfold fold movie tweets news --base BASE -o family.kin.safetensors --budget 1/100

    Parameters
    ----------
    members
        Model directories, packs or PEFT adapters; a member goes by the stem of its path, or NAME=PATH.
    base
        Model directory of the base of all of them.
    output
        The family to write.
    method
        packs: each alone, by fold. rmm: shared directions. jd: shared bases. truncsvd: low-rank, each alone.
        auto: of adapters, and with --low-rank, the best of these three for every layer; else packs.
    budget
        Of the whole file: a size (4MB), or a fraction of what the members take now (1/3): 2 bytes for every
        changed weight of a model directory, its own bytes of a pack or an adapter.
    preset
        paper: reversible merging as published; one number of directions for all layers, whatever it takes.
    rank
        Of the factors in rmm: a number, or auto.
    directions
        Shared directions in rmm: a number, which then decides the bytes; or auto, for the budget.
    dtype
        Of stored numbers where --directions is a number.
    low_rank
        Every member must export exactly as a LoRA.
    dominance
        What to do if one member outweighs or cancels the rest: warn, refuse (exit code 3), or off.
    seed
        Of the packs.
    overwrite
        Replace an existing output.
    dry_run
        Say what each method would lose at the same bytes; write nothing.
    format
        human or json.
    """
    import kinfold

    report = kinfold.fold(
        named_paths(members, FamilyError),
        output,
        base=base,
        method=method,
        budget=budget,
        preset=preset,
        rank=_number("rank", rank),
        directions=_number("directions", directions),
        dtype=dtype,
        low_rank=low_rank,
        dominance=dominance,
        seed=seed,
        overwrite=overwrite,
        dry_run=dry_run,
    )

    emit(report, format, lambda: show_family.folded(report, base, dry_run))


def _number(name: str, text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise FamilyError(f"--{name} takes a whole number or auto, got `{text}`", hint=f"--{name} auto")
    return int(text)


@app.command
def unfold(
    family: Path,
    member: str,
    *,
    base: Path,
    output: Output,
    to: Literal["model", "pack"] = "model",
    force: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Give one member of a family back. Only its own share of the file is read.

    Parameters
    ----------
    family
        The family file.
    member
        Its name; kinfold inspect FAMILY lists them.
    base
        Model directory of the family's base.
    output
        The model directory, or with --to pack the pack, to write.
    to
        model or pack; kinfold export writes an adapter.
    force
        Accept another base of fitting shapes; the card in the output records it.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    import kinfold

    report = kinfold.unfold(family, member, output, base=base, to=to, force=force, overwrite=overwrite)

    emit(report, format, lambda: show_family.unfolded(report, to, base))


@family.command(name="add")
def add_member(
    family: Path,
    pack: Path,
    *,
    output: Output,
    name: str | None = None,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Put a pack into a family as it is; the other variants are not needed, and nothing is shared with it.

    Parameters
    ----------
    family
        The family file.
    pack
        Of the same base.
    output
        The family to write.
    name
        Of the new member; the stem of the pack's path where not given.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    import kinfold

    report = kinfold.add_member(family, pack, output, name=name, overwrite=overwrite)

    emit(report, format, lambda: show_family.described(report))


@family.command(name="remove")
def remove_member(
    family: Path,
    member: str,
    *,
    output: Output,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Take a member out. What it gave to shared directions stays; fold again without it to erase that too.

    Parameters
    ----------
    family
        The family file.
    member
        Its name.
    output
        The family to write.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    import kinfold

    report = kinfold.remove_member(family, member, output, overwrite=overwrite)

    emit(report, format, lambda: show_family.described(report))
