"""The commands on packs that are there: inspect, restore, verify, diff, compare, demo."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from kinfold._version import __version__
from kinfold.cli import show, show_family
from kinfold.cli.output import DONE, FOUND, Format, emit
from kinfold.errors import CodecError, KinfoldError

app = App(
    name="kinfold",
    help="Keep a family of fine-tuned models in little more room than their one base.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # ours says how to go on
)

Output = Annotated[Path, Parameter(name=["--output", "-o"])]
AsFormat = Annotated[Format, Parameter(name="--format")]
Switch = Parameter(negative="")


def named_paths(given: tuple[str, ...], error: type[KinfoldError]) -> dict[str, Path] | list[Path]:
    """Members as PATH, or as NAME=PATH where a name is given."""
    pairs = [text.partition("=") if not Path(text).exists() else (text, "", "") for text in given]
    if not any(equals for _, equals, _ in pairs):
        return [Path(text) for text in given]
    found: dict[str, Path] = {}
    for text, (name, equals, path) in zip(given, pairs, strict=True):
        name, path = (name, path) if equals else (Path(text).name, text)
        if name in found:
            raise error(f"two of them are called `{name}`", hint="name them: one=A two=B")
        found[name] = Path(path)
    return found


def key_values(given: tuple[str, ...], error: type[KinfoldError] = CodecError) -> dict[str, Any]:
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            example = "value_bits=4" if error is CodecError else "KEY=VALUE"
            raise error(f"--option takes KEY=VALUE, got `{text}`", hint=f"--option {example}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


@app.command
def inspect(
    pack: Path,
    *,
    tensors: Annotated[bool, Switch] = False,
    plot: Path | None = None,
    format: AsFormat = "human",
) -> None:
    """Show bytes, codec, rank and error of a pack, or the members of a family; the base is not needed.

    Parameters
    ----------
    pack
        The pack or family file.
    tensors
        One line for every tensor.
    plot
        Write an HTML report with figures to this path; of packs only.
    format
        human or json.
    """
    import kinfold
    from kinfold.family import FamilyReport

    info = kinfold.inspect(pack)
    if isinstance(info, FamilyReport):
        emit(info, format, lambda: show_family.described(info, tensors))
        return
    if plot is not None:
        from kinfold.report.html import write_pack_report

        write_pack_report(plot, info)

    emit(info, format, lambda: show.info(info, tensors, plot))


@app.command
def restore(
    pack: Path,
    *,
    base: Path,
    output: Output,
    force: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Write the variant as a model directory that from_pretrained reads.

    Parameters
    ----------
    pack
        The pack file.
    base
        Model directory of the base it was made from.
    output
        The directory to write.
    force
        Accept another base of fitting shapes; the card in the output records it.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    import kinfold

    report = kinfold.restore(pack, base, output, force=force, overwrite=overwrite)

    emit(report, format, lambda: show.restored(report))


@app.command
def verify(pack: Path, *, base: Path | None = None, format: AsFormat = "human") -> int:
    """Check a pack or a family; with its base, decode every tensor too. Exits with 3 on damage.

    Parameters
    ----------
    pack
        The pack or family file.
    base
        Model directory of the base.
    format
        human or json.
    """
    import kinfold

    report = kinfold.verify(pack, base)

    emit(report, format, lambda: show.verified(report))
    return DONE if report.sound else FOUND


@app.command
def diff(base: Path, variant: Path, *, limit: int = 20, format: AsFormat = "human") -> None:
    """Compare two model directories tensor by tensor, the largest relative change first.

    Parameters
    ----------
    base
        Model directory.
    variant
        Model directory.
    limit
        Tensors to list; the JSON lists all.
    format
        human or json.
    """
    import kinfold

    report = kinfold.diff(base, variant)

    emit(report, format, lambda: show.differences(report, limit))


@app.command
def compare(
    base: Path,
    variant: Path,
    *,
    budgets: str = "1/16,1/64,1/256",
    codecs: str | None = None,
    calibrate: Path | None = None,
    rows: Path | None = None,
    metric: str | None = None,
    figure: Path | None = None,
    report: Path | None = None,
    seed: int = 0,
    format: AsFormat = "human",
) -> None:
    """Set every codec at equal bytes, and show what is left of a fine-tune.

    Example: kinfold compare BASE VARIANT --budgets 1/16,1/64 --metric package.module:accuracy

    Parameters
    ----------
    base
        Model directory of the base.
    variant
        Model directory of the fine-tune.
    budgets
        Of the whole file, with commas: sizes (4MB) or fractions of the reference size (1/64).
    codecs
        With commas; options follow after colons: osd,dare:value_bits=1. All that ship where not given.
    calibrate
        JSONL of texts, input_ids, or prompts and completions, for scores that weigh errors by what they do to
        the outputs.
    rows
        JSONL of texts, input_ids, or prompts and completions, on which outputs are compared; random tokens where
        not given.
    metric
        MODULE:FUNCTION of yours that takes a model directory and returns a number, higher is better.
    figure
        Write an SVG figure to this path.
    report
        Write an HTML report to this path.
    seed
        Of the packs and the random tokens.
    format
        human or json.
    """
    import kinfold
    from kinfold.report import comparison

    comparison.check_outputs(figure, report)
    sys.path.insert(0, "")  # a metric may lie in the current folder
    with redirect_stdout(sys.stderr):  # whatever the metric prints is no data
        found = kinfold.compare(
            base,
            variant,
            budgets=budgets,
            codecs=codecs,
            calibration=kinfold.Calibration.read(calibrate) if calibrate else None,
            rows=rows,
            metric=metric,
            seed=seed,
        )
    if figure is not None:
        comparison.write_comparison_figure(figure, found)
    if report is not None:
        comparison.write_comparison_report(report, found)

    emit(found, format, lambda: show.compared(found, [path for path in (figure, report) if path is not None]))


@app.command
def demo(*, output: Output = Path("kinfold-demo"), format: AsFormat = "human") -> None:
    """The whole road on real weights: fine-tune, pack, restore, measure. Minutes on a laptop.

    Parameters
    ----------
    output
        Folder for the packs, the table and the report.
    format
        human or json.
    """
    from kinfold.demo.run import demo as run_demo

    report = run_demo(output)

    emit(report, format, lambda: show.demonstrated(report))
