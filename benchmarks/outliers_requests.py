"""Requests of other tasks in a variant's log: every filter alone and with the head, beside energy, neighbours, no
filter at all, and a head that is told which requests are foreign.

    python benchmarks/fleet.py --seed 0
    python benchmarks/outliers_requests.py [--variants ng20 movie] [--near] [--finetune EPOCHS]

A cell is a variant, a source of foreign requests (one task, or all mixed), their share pi of the log, and a seed, which
draws 500 reference requests and 400 in-domain ones from the variant's 1000 test rows. With --near the variants are
trained on half of the classes of ng20 and wn, and the other half is foreign. `medix` takes gradients at the widest
linear module of the last block against their median, `medix, paper` at the last norm against the mean of true-label
gradients, 9 rounds of a tenth. --finetune adds the published second stage for mixed sources at pi = .1, with so many
epochs (the paper's are 100, hours a cell).

The results say how many of a variant's cells are measured; a part is told from the whole by that.

Each variant reads all texts once, about 3 minutes on one core, kept in the cache; a cell takes about 10 seconds, all
of them an hour and a half. A line a cell goes to the cache as it is done, so a killed run goes on where it was. One
thread; texts are cut to 64 tokens.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import kinfold
from fleet import ALL_TASKS, fleet, machine, run_script
from grid import RESULTS
from kinfold.audit.outliers import RequestMonitor
from kinfold.audit.outliers.answers import Ids, read
from kinfold.audit.outliers.filters import Views, fit_terms
from kinfold.audit.outliers.finetune import finetune_trainer
from kinfold.audit.outliers.head import cross_fitted, linear_trainer, seeded_folds
from kinfold.audit.outliers.threshold import p_values
from kinfold.demo.sources import base_model, cache_dir, writable_folder
from kinfold.demo.texts import Row
from kinfold.demo.train import record_path, train
from kinfold.tasks import Task
from points import is_measured, kept_points, write_points

VARIANTS, NEAR = ("ng20", "wn", "news8", "movie"), ("ng20", "wn")
SHARES, SEEDS = (0.0, 0.02, 0.05, 0.1, 0.3), (0, 1, 2)
REFERENCE, INSIDE, FOREIGN, MAX_TOKENS = 500, 400, 300, 64
FILTERS = ("sum", "energy", "knn", "msp", "l2", "sal", "medix")
PAPER: dict[str, Any] = {"filter": "medix", "k": 0.1, "max_rounds": 9, "eps": 5e-4, "gradient_reference": "mean"}
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"filter": name, "head": "none"} for name in FILTERS},
    **{f"{name} + head": {"filter": name} for name in (*FILTERS, "none")},
    "medix, paper": {**PAPER, "head": "none"},
    "medix, paper + head": PAPER,
}


@dataclass(frozen=True)
class Variant:
    """A classifier, its own test rows, and rows of others by source."""

    name: str
    directory: Path
    labels: list[str]
    own: list[Row]
    foreign: dict[str, list[Row]]


def far(names: Sequence[str]) -> list[Variant]:
    """Variants of the fleet; the other tasks are foreign."""
    rows = {task: random.Random(3).sample(kind.rows().test, FOREIGN) for task, kind in ALL_TASKS.items()}
    return [
        Variant(m.task, m.directory, m.labels, m.test, {task: rows[task] for task in rows if task != m.task})
        for m in fleet(0, names)
    ]


def near(name: str) -> Variant:
    """A variant of every other class of a task; the rest is foreign."""
    rows = ALL_TASKS[name].rows()
    known = sorted({label for _, label in rows.train})[::2]
    directory = writable_folder(cache_dir() / "bench" / "near") / name
    if not directory.is_dir():
        train(base_model(), [row for row in rows.train if row[1] in known], directory)
    labels = json.loads(record_path(directory).read_text("utf-8"))["labels"]
    own = random.Random(1).sample([row for row in rows.test if row[1] in known], 1000)
    other = random.Random(3).sample([row for row in rows.test if row[1] not in known], FOREIGN)
    return Variant(f"{name}, half", directory, labels, own, {f"{name}, other half": other})


Pool = dict[str, Any]  # arrays, a row a text: features, logits, and gradients inner, last and true


def pools(variant: Variant) -> dict[str, Pool]:
    """What the variant says of all rows, by source; `own` has gradients of true labels too."""
    home = writable_folder(cache_dir() / "bench" / "outliers_requests")
    task, found = None, {}
    for source, rows in {"own": variant.own, **variant.foreign}.items():
        path = home / f"{variant.name}-{source}.npz".replace(", ", "-").replace(" ", "-")
        if not path.exists():
            task = task or Task.load(variant.directory)
            pool = _read(task, ids(task, rows), [variant.labels.index(y) for _, y in rows] if source == "own" else None)
            partial = path.with_suffix(".tmp.npz")
            np.savez(partial, **pool)
            partial.replace(path)
        with np.load(path) as file:
            found[source] = dict(file)
    return found


def ids(task: Task, rows: Sequence[Row]) -> list[Ids]:
    return task.tokenizer([text for text, _ in rows], truncation=True, max_length=MAX_TOKENS)["input_ids"]


def _read(task: Task, texts: list[Ids], labels: list[int] | None) -> Pool:
    inner = read(task, texts, batch_size=32, at="auto")
    last = read(task, texts, batch_size=32, at="last-norm")
    assert inner.logits is not None
    assert inner.gradients is not None
    assert last.gradients is not None
    pool = {"features": inner.features, "logits": inner.logits, "inner": inner.gradients, "last": last.gradients}
    if labels is not None:
        true = read(task, texts, batch_size=32, at="last-norm", labels=labels).gradients
        assert true is not None
        pool["true"] = true
    return pool


@dataclass(frozen=True)
class Cell:
    """A reference and a log; which of the log are foreign; row numbers (source, row) of the log."""

    ref: Pool
    wild: Pool
    odd: np.ndarray
    reference_rows: np.ndarray
    wild_rows: list[tuple[str, int]]

    @classmethod
    def draw(cls, found: dict[str, Pool], source: str, share: float, seed: int) -> "Cell":
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(found["own"]["features"]))
        foreign = [name for name in found if name != "own"] if source == "mixed" else [source]
        places = [(name, i) for name in foreign for i in range(len(found[name]["features"]))]
        count = round(INSIDE * share / (1 - share))
        drawn = [places[i] for i in generator.permutation(len(places))[:count]]
        rows = [("own", int(i)) for i in order[REFERENCE : REFERENCE + INSIDE]] + drawn
        keys = ("features", "logits", "inner", "last")
        wild = {key: np.array([found[name][key][i] for name, i in rows]) for key in keys}
        ref = {key: table[order[:REFERENCE]] for key, table in found["own"].items()}
        return cls(ref, wild, np.array([name != "own" for name, _ in rows]), order[:REFERENCE], rows)


def fitted(cell: Cell, label: str, seed: int, **more: Any) -> RequestMonitor:
    options = METHODS[label]
    gradients: dict[str, np.ndarray] = {}
    if options["filter"] in ("l2", "sal", "medix"):
        paper = "paper" in label
        key = "last" if paper else "inner"
        gradients = {"gradients_ref": cell.ref["true" if paper else key], "gradients_wild": cell.wild[key]}
    tables = cell.ref["features"], cell.ref["logits"], cell.wild["features"], cell.wild["logits"]
    return RequestMonitor(**options, seed=seed).fit(*tables, **gradients, **more)


def oracle(cell: Cell, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and p-values of the head that is told which requests are foreign."""
    ref = Views.of(cell.ref["features"], cell.ref["logits"])
    wild = Views.of(cell.wild["features"], cell.wild["logits"])
    generator = np.random.default_rng(seed)
    folds, wild_folds = (seeded_folds(len(some.features), 5, generator) for some in (ref, wild))
    own, found = cross_fitted(linear_trainer(ref.features, wild.features), folds, wild_folds, cell.odd)
    [energy] = fit_terms("energy", ref, wild, folds)
    scores = (found - own.mean()) / own.std() + energy.of(wild)
    return scores, p_values((own - own.mean()) / own.std() + energy.standardised(energy.reference), scores)


def row(scores: np.ndarray, p: np.ndarray, odd: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"false_alarms": float((p[~odd] <= 0.05).mean())}
    if odd.any():
        top = np.argsort(-scores, kind="stable")[: odd.sum()]
        found |= {"auroc": float(roc_auc_score(odd, scores)), "precision": float(odd[top].mean())}
        found |= {"power": float((p[odd] <= 0.05).mean())}
    return found


def measure(cell: Cell, seed: int, tuned: Any = None) -> list[dict[str, Any]]:
    """All methods on one cell."""
    found = []
    for label in METHODS:
        started = time.perf_counter()
        monitor = fitted(cell, label, seed)
        line = {"method": label, "share": monitor.share_, "seconds": time.perf_counter() - started}
        found.append(line | row(monitor.scores_, monitor.p_values_, cell.odd))
    if cell.odd.any():
        found.append({"method": "oracle + head", **row(*oracle(cell, seed), cell.odd)})
    if tuned is not None:
        started = time.perf_counter()
        monitor = fitted(cell, "medix, paper + head", seed, trainer=tuned)
        line = {"method": "medix, paper + finetune", "seconds": time.perf_counter() - started}
        found.append(line | row(monitor.scores_, monitor.p_values_, cell.odd))
    return found


def tuner(variant: Variant, cell: Cell, epochs: int, seed: int) -> Any:
    """Trainer of the published second stage; exact copies would shift row numbers, so there must be none."""
    task = Task.load(variant.directory)
    texts = {source: ids(task, rows) for source, rows in {"own": variant.own, **variant.foreign}.items()}
    reference = [texts["own"][i] for i in cell.reference_rows]
    labels = [variant.labels.index(variant.own[i][1]) for i in cell.reference_rows]
    wild = [texts[name][i] for name, i in cell.wild_rows]
    if len({tuple(one) for one in wild}) < len(wild):
        return None
    return finetune_trainer(task, reference, labels, wild, epochs=epochs, seed=seed)


def jobs(variant: Variant) -> list[dict[str, Any]]:
    sources = [*variant.foreign, *(["mixed"] if len(variant.foreign) > 1 else [])]
    found = [{"variant": variant.name, "source": "none", "pi": 0.0, "seed": seed} for seed in SEEDS]
    for source in reversed(sources):
        found += [
            {"variant": variant.name, "source": source, "pi": pi, "seed": seed} for pi in SHARES[1:] for seed in SEEDS
        ]
    return found


def summary(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds and single sources, and of the mixed ones, by variant, share and method."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for point in points:
        kind = point["source"] if point["source"] in ("mixed", "none") else "single"
        for line in point["methods"]:
            groups.setdefault((point["variant"], kind, point["pi"], line["method"]), []).append(line)
    result = []
    for (variant, kind, pi, method), lines in sorted(groups.items()):
        keys = [key for key in ("auroc", "precision", "power", "false_alarms", "share", "seconds") if key in lines[0]]
        means = {key: float(np.mean([line[key] for line in lines])) for key in keys}
        result.append({"variant": variant, "source": kind, "pi": pi, "method": method, "cells": len(lines), **means})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--near", action="store_true", help="variants of half of the classes too")
    parser.add_argument("--finetune", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--cells", type=int, help="stop after so many new ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fresh = 0
    with kept_points("outliers_requests") as (points, keep):
        for variant in [*far(arguments.variants), *(near(name) for name in NEAR if arguments.near)]:
            found = pools(variant)
            for job in jobs(variant):
                epochs = arguments.finetune if (job["source"], job["pi"]) == ("mixed", 0.1) else 0
                job |= {"epochs": epochs} if epochs else {}
                if is_measured(job, points) or fresh == arguments.cells:
                    continue
                cell = Cell.draw(found, job["source"] if job["pi"] else "mixed", job["pi"], job["seed"])
                tuned = tuner(variant, cell, epochs, job["seed"]) if epochs else None
                started = time.perf_counter()
                keep({**job, "methods": measure(cell, job["seed"], tuned)})
                fresh += 1
                told = next(line for line in points[-1]["methods"] if line["method"] == "sum + head")
                print(json.dumps({**job, "seconds": time.perf_counter() - started, "default": told}), flush=True)
    sources = dict.fromkeys(VARIANTS, len(ALL_TASKS)) | {f"{name}, half": 1 for name in NEAR}  # with `mixed`
    planned = {name: len(SEEDS) * (1 + count * (len(SHARES) - 1)) for name, count in sources.items()}
    measured = {
        name: {"cells": sum(point["variant"] == name for point in points), "planned": cells}
        for name, cells in planned.items()
    }
    content = {"machine": machine(), "kinfold": kinfold.__version__, "threads": 1, "measured": measured}
    write_points(RESULTS / "outliers_requests.json", content | {"summary": summary(points)}, points)


if __name__ == "__main__":
    run_script(main)
