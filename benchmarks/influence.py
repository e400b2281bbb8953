"""Influence scores by compressor: LDS on digits, wrong labels on digits and movie, seconds and bytes.

    python benchmarks/influence.py --task digits     # about 6 minutes on one core
    python benchmarks/influence.py --task movie      # about an hour: trains a variant on 20 % wrong labels first
    python benchmarks/influence.py --smoke           # a minute, figures mean nothing

One JSON line a point is kept in the cache directory, so a killed run goes on; results/influence.json has them all. LDS
is the rank correlation of summed scores with retrained nets; AUC is of the wrong labels by self-influence, beside that
of the plain loss. `stored` are the bytes of the compressed training gradients in float16, `map` those of the
compressor's own matrices. Movie: base A, 4000 rows, 750 steps of 16 (three epochs); accuracies are printed: a variant
that has not learned its rows by heart has nothing to find. Gaussian and PCA have no point where their matrices pass
4 GiB.
"""

import argparse
import json
import os
import random
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import numpy as np
import torch

import kinfold
from digits import digits, ground_truth, row_losses, train
from fleet import ALL_TASKS, base_model, machine, run_script
from grid import RESULTS
from kinfold.audit.influence.attributor import MaskedInfluence
from kinfold.audit.influence.baselines import gradient_cosine
from kinfold.audit.influence.metrics import lds, mislabel_auc
from kinfold.audit.influence.settings import Spec
from kinfold.audit.influence.subject import opened
from kinfold.demo.sources import cache_dir
from kinfold.demo.train import accuracy
from kinfold.demo.train import train as finetune
from kinfold.errors import AuditError
from points import is_measured, kept_points

SEEDS = (0, 1, 2)
DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
COMPRESSORS = ("entry", "neuron", "gaussian", "pca")
MOVIE_ROWS, MOVIE_STEPS, MOVIE_PROBES = 4000, 750, 500


def jobs(task: str) -> list[dict[str, Any]]:
    """The most telling first; PCA has no seed."""
    found = [{"compressor": c, "keep": k} for k in (256, 1024, 64, 2048) for c in COMPRESSORS]
    if task == "movie":
        found = [job for job in found if job["keep"] in (256, 1024) or job["compressor"] in ("entry", "neuron")]
    points = [
        {"task": task, "blocks": "module", "seed": seed} | job
        for job in found
        for seed in (SEEDS if task == "digits" and job["compressor"] != "pca" else (0,))
    ]
    if task == "movie":
        points = [point | {"at": 1.0} for point in points]
        points[4:4] = [points[0] | {"at": at} for at in (0.25, 0.1)]  # on the way from the base
    if task == "digits":
        points += [
            {"task": task, "blocks": b, "seed": 0, "compressor": "none", "keep": 4096} for b in ("module", "joint")
        ]
    return points


class DigitsTask:
    """One net, its rows, and nets trained again on 40 halves of them, twice each."""

    def __init__(self, smoke: bool) -> None:
        self.data = digits(200 if smoke else 600)
        steps = 40 if smoke else 400
        self.truth = ground_truth(self.data, 6 if smoke else 40, steps=steps)
        self.net = train(self.data, np.arange(len(self.data.y))[None], steps=steps)[0]
        self.loss, self.wrong, self.modules = row_losses, self.data.wrong, None
        self.train = [(self.data.x, self.data.y)]
        self.probe = [(self.data.probe_x, self.data.probe_y)]


class MovieTask:
    """A variant of base A whose training rows have 20 % wrong labels; no retraining, so no LDS."""

    truth = None

    def __init__(self, smoke: bool, at: float = 1.0) -> None:
        rows, steps = (64, 4) if smoke else (MOVIE_ROWS, MOVIE_STEPS)
        source = ALL_TASKS["movie"].rows()
        drawn = random.Random(0).sample(source.train, rows)
        labels = sorted({label for _, label in drawn})
        wrong = set(random.Random(1).sample(range(rows), rows // 5))
        noisy = [(text, labels[labels.index(label) ^ (place in wrong)]) for place, (text, label) in enumerate(drawn)]
        test = random.Random(2).sample(source.test, 16 if smoke else MOVIE_PROBES)
        directory = cache_dir() / "bench" / f"influence-movie-{rows}-{steps}"
        if not directory.is_dir():
            finetune(base_model(), noisy, directory, steps=steps)
        print(f"training rows {accuracy(directory, noisy):.3f}, test {accuracy(directory, test):.3f}", flush=True)
        with opened(directory, base_model(), None, "auto", "auto", at) as subject:
            self.net, self.loss = subject.model, subject.losses
            self.modules = tuple(name.removesuffix(".weight") for name in subject.modules)
            self._prefixed(subject)
            self.train, self.wrong = self._batches(subject, noisy, labels, np.isin(np.arange(rows), sorted(wrong)))
            self.probe, _ = self._batches(subject, test, labels, np.zeros(len(test), bool))

    def _prefixed(self, subject: Any) -> None:
        """Names as the model has them: `Answers` holds the encoder as `model`."""
        self.modules = tuple(name if name == "head" else f"model.{name}" for name in self.modules)

    def _batches(self, subject: Any, rows: Any, labels: list[str], wrong: np.ndarray) -> tuple[list[Any], np.ndarray]:
        """Batches of one length, and `wrong` in their order."""
        asked = [{"text": text, "label": labels.index(label)} for text, label in rows]
        grouped = subject.task.grouped(asked, 16)
        order = [place for places, _ in grouped for place in places]
        return [(ids, [asked[place] for place in places]) for places, ids in grouped], wrong[order]


TASKS = {"digits": DigitsTask, "movie": MovieTask}


def measure(job: dict[str, Any], task: Any) -> dict[str, Any]:
    """One compressor at one size: seconds to compress and to solve, bytes, LDS by damping, AUC."""
    spec = Spec(**{name: job[name] for name in ("keep", "compressor", "blocks", "seed")}, modules=task.modules)
    started = time.process_time()
    try:
        one = MaskedInfluence(task.loss, task.net, spec).cache(task.train)
    except AuditError as refused:
        return job | {"refused": str(refused)}
    compressed = time.process_time() - started
    started = time.process_time()
    scores = one.attribute(task.train, task.probe).numpy()
    own = one.self_attribute(task.train).numpy()
    found: dict[str, Any] = {
        "width": one.layout.width,
        "cache_cpu_seconds": compressed,
        "score_cpu_seconds": time.process_time() - started,
        "stored_bytes": len(own) * (2 * one.layout.width + 40),
        "map_bytes": one.map_bytes,
        "auc_self": mislabel_auc(own, task.wrong),
        "auc_probes": mislabel_auc(-scores.mean(1), task.wrong),
    }
    if task.truth is not None:
        by_damping = {d: one.damped(d).attribute(task.train, task.probe).numpy() for d in DAMPINGS}
        found["lds"] = {str(d): float(np.nanmean(lds(s, task.truth))) for d, s in by_damping.items()}
    return job | found | baselines(task, one)


def baselines(task: Any, one: MaskedInfluence) -> dict[str, float]:
    """Loss, gradient norm and gradient cosine on the same coordinates; seconds of forward, backward and compression."""
    started = time.process_time()
    gradients = one.gradients(task.train)
    spent, probe = time.process_time() - started, one.gradients(task.probe)
    with torch.no_grad():
        losses = np.concatenate([task.loss(task.net, batch).numpy() for batch in task.train])
    cosine = gradient_cosine(gradients, probe)
    found = {
        "gradient_cpu_seconds": spent,
        "auc_loss": mislabel_auc(losses, task.wrong),
        "auc_norm": mislabel_auc(np.linalg.norm(gradients, axis=1), task.wrong),
        "auc_cosine": mislabel_auc(-cosine.mean(1), task.wrong),
    }
    if task.truth is not None:
        found |= {"lds_cosine": float(np.nanmean(lds(cosine, task.truth)))}
        found |= {"lds_product": float(np.nanmean(lds(gradients @ probe.T, task.truth)))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure influence scores by compressor.")
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--smoke", action="store_true", help="tiny rows and two points a task; nothing is saved")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.smoke:
        for name in chosen.task:
            task = TASKS[name](smoke=True)
            for job in jobs(name)[:2]:
                print(measure(job, task), flush=True)
        return
    with kept_points("influence") as (done, keep):
        for name in chosen.task:
            todo = [job for job in jobs(name) if not is_measured(job, done)]
            made = cache(partial(TASKS[name], False))
            for job in todo:
                keep(measure(job, made(*[job["at"]] if "at" in job else [])))
                print(done[-1], flush=True)
                save(RESULTS / "influence.json", done)


def save(path: Path, points: list[dict[str, Any]]) -> None:
    content = {"machine": machine(), "kinfold": kinfold.__version__, "points": points}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
