"""What calibration rows do for `fold`: the divergence from the variant that is left on rows nobody has used.

    python benchmarks/fleet.py --seed 0 --tasks wn movie
    python benchmarks/calibration.py         # about 15 CPU minutes; results/calibration.json

Packs of two fine-tunes without calibration rows, with 32 and with 256, restored and run on 400 test rows: mean
KL(variant || restored) in nats, and the same on the calibration rows themselves, which the packs were fitted to.
"""

import json
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch

import kinfold
from fleet import Member, fleet, machine, run_script
from grid import RESULTS, Setting, round_trip
from kinfold.tasks import Task, divergence
from points import is_measured, kept_points

TASKS, BUDGETS, ROWS, TEST = ("wn", "movie"), ("1/1500", "1/400", "1/100"), (0, 256, 32), 400


def measure(member: Member, budget: str, count: int) -> dict[str, Any]:
    rows = [{"text": text} for text, _ in member.calibration]
    with tempfile.TemporaryDirectory() as folder:
        back, started = Path(folder) / member.task, time.process_time()
        found = round_trip(member.base, member.directory, Setting("fold", "fold"), budget, rows[:count], back)
        found["pack_cpu_seconds"] = time.process_time() - started
        variant, restored = Task.load(member.directory), Task.load(back)
    some = {"unseen": [{"text": text} for text, _ in member.test[:TEST]], "calibration": rows[:count]}
    return found | {f"divergence_{name}": apart(variant, restored, texts) for name, texts in some.items() if texts}


@torch.inference_mode()
def apart(variant: Task, restored: Task, rows: list[dict[str, Any]]) -> float:
    """Mean KL(variant || restored), nats."""
    parts = (
        float(divergence(variant.outputs(ids), restored.outputs(ids), True)) * len(ids) for ids in variant.batches(rows)
    )
    return sum(parts) / len(rows)


def main() -> None:
    torch.set_num_threads(1)
    members = {member.task: member for member in fleet(0, TASKS)}
    with kept_points("calibration") as (points, keep):
        for task, count, budget in product(TASKS, ROWS, BUDGETS):
            job = {"task": task, "budget": budget, "rows": count}
            if not is_measured(job, points):
                keep(job | measure(members[task], budget, count))
                print(points[-1], flush=True)
        content = {"machine": machine(), "kinfold": kinfold.__version__, "test_rows": TEST, "points": points}
        (RESULTS / "calibration.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
