"""The commands on compressed KV caches: `kinfold kv calibrate|drift|compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App

from kinfold.cli.app import AsFormat, Output, Switch, app
from kinfold.cli.output import emit, facts, out, say_hint, table
from kinfold.report.progress import size

if TYPE_CHECKING:
    from torch import Tensor

    from kinfold.tasks import Task

kv = App(name="kv", help="Compressed KV caches for long contexts.")
app.command(kv)


@kv.command
def calibrate(
    base: Path,
    *,
    texts: Path,
    output: Output,
    ratio: float | None = None,
    energy: float | None = None,
    value_ratio: float | None = None,
    stack_queries: Literal["none", "balanced", "paper"] = "none",
    max_tokens: int = 16_384,
    seed: int = 0,
    overwrite: Annotated[bool, Switch] = False,
    format: AsFormat = "human",
) -> None:
    """Find bases for the keys and values of a model and of every fine-tune of it.

    Example: kinfold kv calibrate BASE --texts t.jsonl -o base.kvbasis.safetensors --ratio 0.8

    Parameters
    ----------
    base
        Model directory of the base.
    texts
        JSONL of texts or input_ids, like those that will be read.
    output
        The file to write.
    ratio
        Directions kept, as a share of the head's dimensions; 0.8 unless --energy is given.
    energy
        Instead: the least share of the energy that every head keeps.
    value_ratio
        Another ratio for the values.
    stack_queries
        Count the queries into the bases of the keys: balanced, or as the paper does.
    max_tokens
        Read at most this many.
    seed
        Of the order in which texts are read.
    overwrite
        Replace an existing output.
    format
        human or json.
    """
    from kinfold.checkpoint.atomic import refuse_existing
    from kinfold.serve.cache import calibrate as measure
    from kinfold.serve.cache.calibrate import summary

    refuse_existing(output, overwrite)
    task, ids = _read(base, texts, max_tokens)
    basis = measure(
        task.model,
        ids,
        ratio=0.8 if ratio is None and energy is None else ratio,
        energy=energy,
        value_ratio=value_ratio,
        stack_queries=stack_queries,
        max_tokens=max_tokens,
        seed=seed,
    )
    basis.save(output, overwrite=overwrite)
    report = summary(basis)

    def show() -> None:
        facts(
            [
                ("wrote", f"{output}  {size(output.stat().st_size)}, held once for all caches"),
                ("tokens", str(report.tokens)),
                ("keys", f"rank {report.key_rank} of {report.width}, {report.key_energy:.1%} of the energy"),
                ("values", f"rank {report.value_rank} of {report.width}, {report.value_energy:.1%} of the energy"),
            ]
        )
        say_hint(f"kinfold kv compare {base} --texts {texts} --cache full,quant:bits=4,ojakv:basis={output}")

    emit(report, format, show)


@kv.command
def drift(
    base: Path, variant: Path, *, basis: Path, texts: Path, max_tokens: int = 16_384, format: AsFormat = "human"
) -> None:
    """Say whether the base's bases are fair to a fine-tune: what they leave out of each, on the same texts.

    Example: kinfold kv drift BASE VARIANT --basis base.kvbasis.safetensors --texts t.jsonl

    Parameters
    ----------
    base
        Model directory of the base.
    variant
        A pack of the fine-tune, or its model directory.
    basis
        What `kinfold kv calibrate` wrote.
    texts
        JSONL of texts or input_ids.
    max_tokens
        Read at most this many.
    format
        human or json.
    """
    import kinfold
    from kinfold.serve.cache import KVBasis
    from kinfold.serve.cache.drift import compare_drift
    from kinfold.tasks import Task

    fitted = KVBasis.load(basis)
    task, ids = _read(base, texts, max_tokens)
    other = kinfold.load(variant, base).float() if variant.is_file() else Task.load(variant).model
    report = compare_drift(task.model, other, fitted, ids, max_tokens=max_tokens)

    def show() -> None:
        columns = ["left out of", "base, mean", "variant, mean", "base, worst head", "variant, worst head"]
        rows = [
            [what, *(f"{share:.2%}" for share in shares)]
            for what, shares in (("keys", report.key), ("values", report.value))
        ]
        table(columns, rows)
        out.print()
        facts([("tokens", str(report.tokens)), ("verdict", report.sentence)])

    emit(report, format, show)


@kv.command
def compare(
    base: Path,
    *,
    texts: Path,
    cache: str = "full,quant:bits=8,quant:bits=4,quant:bits=2",
    last: int = 512,
    max_tokens: int = 8192,
    questions: int = 0,
    format: AsFormat = "human",
) -> None:
    """Run caches on your own texts: bytes, perplexity, agreement with the full cache, time.

    Example: kinfold kv compare BASE --texts t.jsonl --cache full,quant:bits=4,ojakv:basis=F,ratio=.8

    Parameters
    ----------
    base
        Model directory of a causal language model.
    texts
        JSONL of texts or input_ids.
    cache
        Caches separated by commas, each NAME or NAME:option=value,option=value.
    last
        Score this many tokens at the end of each text, at most half of it.
    max_tokens
        Cut longer texts to this many.
    questions
        Hide this many codes in each text and ask for them: the first in the prompt, the others follow token by token.
    format
        human or json.
    """
    from kinfold.serve.cache import parse_caches
    from kinfold.serve.cache.compare import compare_caches
    from kinfold.tasks import Task, read_rows

    caches = parse_caches(cache)
    report = compare_caches(Task.load(base), read_rows(texts), caches, last=last, most=max_tokens, questions=questions)

    def show() -> None:
        head = ["cache", "bytes / full", "perplexity", "same token", "energy lost", "entries read", "first", "next"]
        head += ["first answer", "later answers", "log p"] if questions else []
        table(head, [_cells(row) for row in report.rows])
        out.print()
        facts(
            [
                ("texts", f"{report.texts} of {report.tokens} tokens, {report.scored} scored one by one"),
                ("first, next", "time to the first and to each later token over the full cache's, on this machine"),
                *([("log p", "of the digits of a later code, nats")] if questions else []),
                *(("note", note) for note in report.notes),
            ]
        )

    emit(report, format, show)


def _cells(row: Any) -> list[str]:
    reads = "all" if row.reads_mean is None else f"{row.reads_mean:.0f} (at most {row.reads_max})"
    lost = "" if row.residual is None else f"{row.residual:.2%}"
    quality = [f"{row.ratio:.3f}", f"{row.perplexity:.4g}", f"{row.agreement:.1%}"]
    return [row.cache, *quality, lost, reads, f"{row.first:.2f}", f"{row.next:.2f}", *_answers(row.recall)]


def _answers(recall: Any) -> list[str]:
    if recall is None:
        return []
    if recall.later is None:
        return [f"{recall.first:.0%}", "", ""]
    return [f"{recall.first:.0%}", f"{recall.later:.0%}", f"{recall.later_log_probability:.2f}"]


def _read(directory: Path, texts: Path, most: int) -> tuple[Task, list[Tensor]]:
    from kinfold.tasks import Task, read_rows

    rows = read_rows(texts)
    task = Task.load(directory)
    return task, [task.token_ids(row, most) for row in rows]
