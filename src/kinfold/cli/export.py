"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from kinfold.cli.app import AsFormat, Output, Switch, app
from kinfold.cli.output import emit, facts, out, say_hint, table
from kinfold.report.progress import size


@app.command
def export(
    artefact: Path,
    *,
    base: Path,
    output: Output,
    to: Literal["peft"] = "peft",
    member: str | None = None,
    rank: int | None = None,
    engine: Literal["peft", "vllm"] = "peft",
    partial: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Write a variant as a LoRA adapter that PEFT and multi-LoRA servers load.

    Example: kinfold export movie.kin.safetensors --base BASE -o ADAPTER --rank 16

    Parameters
    ----------
    artefact
        A pack, a model directory, or an adapter folder.
    base
        Model directory of the base; the adapter names it as given.
    output
        The folder to write.
    to
        The layout.
    member
        Of a family.
    rank
        The most a matrix may have; the artefact's own factors stay as they are where not given, and other matrices
        get 16.
    engine
        vllm leaves out what vLLM refuses: norms, biases, convolutions.
    partial
        Write the adapter though something is left out.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    import kinfold

    report = kinfold.export(
        artefact,
        output,
        base=base,
        to=to,
        member=member,
        rank=rank,
        engine=engine,
        partial=partial,
        overwrite=overwrite,
    )

    emit(report, format, lambda: _show(report))


def _show(report: Any) -> None:
    """An `ExportReport`."""
    whole = f", {len(report.whole)} kept whole" if report.whole else ""
    biases = f", {report.biases} biases" if report.biases else ""
    pairs = [
        ("adapter", f"{report.path}, {size(report.bytes)}"),
        ("modules", f"{report.modules} of rank {report.rank} or less{whole}{biases}"),
        ("error", f"{report.error:.3g} of the delta's norm"),
    ]
    facts([*pairs, *(("note", note) for note in report.notes)])
    if report.left_out:
        out.print()
        rows = [[row.name, "new" if row.share is None else f"{row.share:.2%}", row.why] for row in report.left_out]
        table(["left out", "of the delta", "why"], rows, left=3)
    if report.engine == "vllm":
        lora = f"--enable-lora --lora-modules {Path(report.path).name}={report.path}"
        say_hint(f"vllm serve {report.base} {lora} --max-lora-rank {report.max_lora_rank}")
    elif report.model is not None:
        loaded = f"PeftModel.from_pretrained({report.model}.from_pretrained('{report.base}'), '{report.path}')"
        say_hint(f'python -c "from peft import PeftModel; from transformers import {report.model}; {loaded}"')
