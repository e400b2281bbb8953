"""The six tasks of the dev fleet as LoRA adapters, from one start or each from its own; cached outside the repository.

    python benchmarks/lora_fleet.py [--tasks movie wn]     # about 100 CPU seconds an adapter, twelve of them

Rows, steps and head are those of the fleet; rank 16 on every linear layer of the encoder. `shared`: all adapters
start from the same A (B is zero), as when one script trains them all; `own`: each task draws its A.
"""

import argparse
import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file

import kinfold
from fleet import ALL_TASKS, PROCESSES, Member, run_script, sample_test_rows
from kinfold.demo import train as recipe
from kinfold.demo.sources import base_model, cache_dir
from kinfold.errors import DataError

STARTS = ("shared", "own")
RANK, SCALE = 16, 8.0  # alpha / r; with the fleet's own step size the encoder moves by about as much


def lora_fleet(start: str) -> list[Member]:
    """The trained adapters of one kind of start.

    Raises:
        DataError: an adapter has not been trained yet.
    """
    missing = [task for task in ALL_TASKS if not _record(task, start).is_file()]
    if missing:
        raise DataError(f"no {start} adapter of {', '.join(missing)}", hint="python benchmarks/lora_fleet.py")
    members = []
    for task in ALL_TASKS:
        record, rows = json.loads(_record(task, start).read_text("utf-8")), ALL_TASKS[task].rows()
        folder, test = _folder(task, start), sample_test_rows(rows)
        measured = record["labels"], record["after"], record["zero_delta"]
        members.append(Member(task, folder / task, base_model(), test, [], *measured, head=folder / "head"))
    return members


def _folder(task: str, start: str) -> Path:
    return cache_dir() / "lora" / start / f"{recipe.RECIPE}-r{RANK}-x{SCALE:g}" / task


def _record(task: str, start: str) -> Path:
    return _folder(task, start) / "record.json"


def build(task: str, start: str) -> dict[str, Any]:
    """Train one adapter, merge it by `kinfold.merge` to measure it, write its record last."""
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(1)
    folder, base, rows = _folder(task, start), base_model(), ALL_TASKS[task].rows()
    folder.mkdir(parents=True, exist_ok=True)
    labels = sorted({label for _, label in rows.train})
    rng = random.Random(0)
    sample = rng.sample(rows.train, min(len(rows.train), recipe.TRAIN_ROWS))
    texts = recipe._encode(base, [text for text, _ in sample])
    targets = torch.tensor([labels.index(label) for _, label in sample])
    torch.manual_seed(0 if start == "shared" else 1 + list(ALL_TASKS).index(task))
    where = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    config = LoraConfig(r=RANK, lora_alpha=int(RANK * SCALE), lora_dropout=0.0, target_modules=where)
    encoder = get_peft_model(recipe._load_encoder(base), config)
    torch.manual_seed(0)
    head = torch.nn.Linear(encoder.config.hidden_size, len(labels))
    losses = recipe._fit(encoder, head, texts, targets, 300, rng, None)
    encoder.save_pretrained(str(folder / task))
    (folder / "head").mkdir(exist_ok=True)
    state = {"head.weight": head.weight.detach(), "head.bias": head.bias.detach()}
    save_file(state, folder / "head" / "model.safetensors")
    test, merged = sample_test_rows(rows), folder / "merged"
    one = {task: folder / task}
    kinfold.merge(base, one, merged, method="task_arithmetic", scale=1.0, overwrite=True, dominance="off")
    record = {
        "task": task,
        "start": start,
        "labels": labels,
        "loss": sum(losses[-30:]) / 30,
        "after": recipe.accuracy(merged, test, head=folder / "head", labels=labels),
        "zero_delta": recipe.accuracy(base, test, head=folder / "head", labels=labels),
    }
    recipe.write_json(_record(task, start), record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure the adapters.")
    parser.add_argument("--tasks", nargs="+", choices=list(ALL_TASKS), default=list(ALL_TASKS))
    tasks = parser.parse_args().tasks
    base_model()  # before the workers start, so that they do not download it twice
    todo = [(task, start) for start in STARTS for task in tasks if not _record(task, start).is_file()]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        for record in pool.map(build, *zip(*todo, strict=True)) if todo else ():
            print(record, file=sys.stderr, flush=True)
    print("task     start   zero-delta  after")
    for task in tasks:
        for start in STARTS:
            record = json.loads(_record(task, start).read_text("utf-8"))
            print(f"{task:8} {start:7} {record['zero_delta']:10.3f} {record['after']:6.3f}")


if __name__ == "__main__":
    run_script(main)
