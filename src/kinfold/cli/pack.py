"""The command `pack`: one fine-tune to a file or a store, or a folder of them to a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import CycloptsError, Parameter

from kinfold.cli import show, show_many
from kinfold.cli.app import AsFormat, Switch, app, key_values
from kinfold.cli.output import AT_FAULT, DONE, emit
from kinfold.cli.store import default_store

ONE = "kinfold pack BASE VARIANT -o PACK"
ONE_ADDED = "kinfold pack BASE VARIANT --store URL [--name NAME]"
MANY = "kinfold pack --all DIR --store URL [--base BASE]"


@app.command
def pack(
    base: Path | None = None,
    variant: Path | None = None,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    store: str | None = None,
    name: str | None = None,
    all: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    retries: int | None = None,
    codec: str = "fold",
    budget: str | None = None,
    option: tuple[str, ...] = (),
    calibrate: Path | None = None,
    labels: Literal["model", "data"] = "model",
    seed: int = 0,
    overwrite: Annotated[bool, Switch] = False,
    dry_run: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> int:
    """Code a fine-tune as its difference to the base, in one small file.

    Example: kinfold pack BASE VARIANT -o movie.kin.safetensors --budget 1/100

    Into a store: kinfold pack BASE VARIANT --store URL

    A whole folder: kinfold pack --all DIR --store URL --base BASE

    Parameters
    ----------
    base
        Model directory of the base; with --store or --all also a model's name in the store.
    variant
        Model directory of the fine-tune.
    output
        The pack to write; may be left out with --store.
    store
        Add the pack to this store, a folder or a URL. With --all KINFOLD_STORE or ./kinfold-store where not given.
    name
        In the store; that of the variant's directory where not given.
    all
        Pack every model directory in this folder, and add what the store lacks; a rerun goes on.
    workers
        With --all: processes at a time; half the cores where not given.
    ray
        With --all: pack on the Ray cluster at this address, auto, or local.
    retries
        With --all: how often what failed is tried again; 0 where not given.
    codec
        fold, exact, osd, truncsvd, bitdelta, dare or magnitude.
    budget
        Of the whole file: a size (4MB), a fraction of the reference size (1/100, where none is given), rank:4, or
        exact; or gain=0.98, the fewest bytes that recover this share of the fine-tune's effect on the --calibrate rows.
    option
        KEY=VALUE for the codec; may be repeated.
    calibrate
        JSONL of texts, input_ids, or prompts and completions: fold chooses its codes so that the model answers them as
        the variant does; osd weighs errors by what they do to the outputs.
    labels
        Whose answers Fisher information is taken at: drawn from the model, or the data's.
    seed
        For every random choice; recorded in the pack.
    overwrite
        Replace an existing output.
    dry_run
        Plan only, write nothing.
    format
        human or json.
    """
    _check_form(locals())
    import kinfold

    settings: dict[str, Any] = {
        "codec": codec,
        "options": key_values(option),
        "budget": budget,
        "calibration": kinfold.Calibration.read(calibrate, labels) if calibrate else None,
        "seed": seed,
    }
    if all is not None:
        return _pack_all(all, store, format, base=base, workers=workers, ray=ray, retries=retries or 0, **settings)
    assert base is not None
    assert variant is not None
    settings |= {"overwrite": overwrite}
    if store is None:
        assert output is not None
        report = kinfold.pack(base, variant, output, **settings, dry_run=dry_run)
        emit(report, format, lambda: show.packed(report, base, dry_run))
        return DONE
    from kinfold.store import pack_into

    both = pack_into(base, variant, store, name=name, out=output, **settings)
    emit(both, format, lambda: show_many.packed_into(both, base, output, store))
    return DONE


def _pack_all(folder: Path, store: str | None, format: Any, **keywords: Any) -> int:
    from kinfold.store import pack_all

    report = pack_all(folder, store or default_store(), told=show_many.told, **keywords)

    emit(report, format, lambda: show_many.packed_all(report))
    show_many.failures(report)
    return AT_FAULT if report.of("failed") else DONE


def _check_form(given: dict[str, Any]) -> None:
    """Refuse options of one form beside another's, in the words of the right form."""

    def wrong(problem: str, *forms: str) -> CycloptsError:
        return CycloptsError(msg=f"{problem}; {', or '.join(forms)}")

    if given["all"] is not None:
        for option in ("variant", "output", "name", "overwrite", "dry_run"):
            if given[option]:
                what = "VARIANT" if option == "variant" else f"--{option.replace('_', '-')}"
                raise wrong(f"--all takes every model in a folder, and no {what}", MANY)
        if given["workers"] is not None and given["ray"] is not None:
            raise wrong("--workers are processes here, --ray is a cluster; give one of them", MANY)
        return
    for option in ("workers", "ray", "retries"):
        if given[option] is not None:
            raise wrong(f"--{option} is for --all", MANY)
    if given["base"] is None or given["variant"] is None:
        raise wrong("BASE and VARIANT, two model directories, are wanted, or a folder with --all", ONE, MANY)
    if given["store"] is not None and given["dry_run"]:
        raise wrong("--dry-run adds nothing, so leave --store out", f"{ONE} --dry-run")
    if given["store"] is None and given["name"] is not None:
        raise wrong("--name is for a --store", ONE_ADDED)
    if given["store"] is None and given["output"] is None:
        raise wrong("a pack needs a file or a store to go to", ONE, ONE_ADDED)
