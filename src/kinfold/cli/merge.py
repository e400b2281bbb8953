"""The command `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from kinfold.cli.app import AsFormat, Output, Switch, app, key_values, named_paths
from kinfold.cli.output import emit, facts, say_hint, table
from kinfold.errors import CodecError, MergeError
from kinfold.report.progress import size


@app.command
def merge(
    base: Path | None = None,
    *variants: str,
    output: Output,
    recipe: Path | None = None,
    method: str | None = None,
    option: tuple[str, ...] = (),
    weights: str | None = None,
    inner: str | None = None,
    heads: str = "error",
    dominance: Literal["off", "warn", "refuse"] = "warn",
    seed: int = 0,
    dtype: str | None = None,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Make one model of several fine-tunes of one base.

    Example: kinfold merge BASE A B C --method ties --option density=0.2 -o OUT

    Parameters
    ----------
    base
        Model directory of the base.
    variants
        Model directories or packs; NAME=PATH gives one a name of its own.
    output
        The model directory to write.
    recipe
        A YAML file in mergekit's shape instead of base, variants and method.
    method
        ties unless given; linear, task_arithmetic, dare_linear, dare_ties, della, slerp, knots, core_space.
    option
        KEY=VALUE for the method; may be repeated.
    weights
        One number a variant, comma-separated, none of them 0; 1 each unless given.
    inner
        The rule within knots, core_space or della: ties or task_arithmetic.
    heads
        Tensors that not every variant shares with the base: error lists them, base keeps the base's, a variant's
        name takes that variant's.
    dominance
        Whether variants that outweigh the others are looked for: off, warn or refuse.
    seed
        For methods that draw; recorded in the model's card.
    dtype
        Of the merged model, such as bfloat16; the base's unless given.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    import kinfold

    common: dict[str, Any] = {"heads": heads, "dominance": dominance, "seed": seed, "overwrite": overwrite}
    if recipe is not None:
        if base or variants or option or any(given is not None for given in (method, weights, inner, dtype)):
            raise MergeError(
                "--recipe says what is merged and how; it goes with -o, --heads, --dominance, --seed, --overwrite only",
                hint=f"kinfold merge --recipe {recipe} -o {output}",
            )
        report = kinfold.merge_recipe(recipe, output, **common)
    elif base is None or not variants:
        raise MergeError(
            "merge takes a base and its variants, or --recipe", hint=f"kinfold merge BASE A B --method ties -o {output}"
        )
    else:
        report = kinfold.merge(
            base,
            named_paths(variants, MergeError),
            output,
            method=method or "ties",
            weights=_numbers(weights),
            inner=inner,
            dtype=dtype,
            **common,
            **_method_options(option),
        )

    emit(report, format, lambda: _show(report))


def _numbers(weights: str | None) -> list[float] | None:
    try:
        return None if weights is None else [float(text) for text in weights.split(",")]
    except ValueError as cause:
        raise MergeError(f"--weights takes numbers, got `{weights}`", hint="--weights 1,0.5,1") from cause


def _method_options(given: tuple[str, ...]) -> dict[str, Any]:
    try:
        options = key_values(given)
    except CodecError as cause:
        raise MergeError(str(cause), hint="--option density=0.2") from cause
    taken = options.keys() & {"method", "weights", "inner", "heads", "dominance", "seed", "overwrite", "dtype"}
    for name in sorted(taken):
        raise MergeError(f"`{name}` is no option of a method", hint=f"--{name} {options[name]}")
    return options


def _show(report: Any) -> None:
    """A `MergeReport`, for people."""
    options = ", ".join(f"{key}={value}" for key, value in report.options.items())
    counts = ", ".join(f"{count} {kind}" for kind, count in report.tensors.items() if count)
    pairs = [
        ("model", f"{report.path}, {size(report.bytes)}"),
        ("method", " ".join([report.method, *([f"with {report.inner}"] if report.inner else []), f"({options})"])),
        ("tensors", counts),
    ]
    named = (("kept whole", report.kept), ("left out", report.left_out), ("not in the space", report.passed_by))
    pairs += [(label, ", ".join(names)) for label, names in named if names]
    if report.dominance is not None and report.dominance.verdict in ("flagged", "undecided"):
        pairs.append(("warning", report.dominance.sentence))
    facts(pairs)
    table(["member", "kind", "weight"], [[row.name, row.kind, f"{row.weight:.4g}"] for row in report.members], left=2)
    say_hint(f"python -c \"from transformers import AutoModel; AutoModel.from_pretrained('{report.path}')\"")
