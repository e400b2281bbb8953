"""Six fine-tunes of one base in one file: what each way of folding loses at equal bytes, beside merges to one model.

    python benchmarks/fleet.py --seed 0      # once: trains the fleet
    python benchmarks/family.py              # about an hour; results/family.json and family.svg
    python benchmarks/lora_fleet.py          # once: the same tasks as adapters of rank 16
    python benchmarks/family.py --adapters shared     # and own: results/family_lora_shared.json

Gain is as in quality.py: 1 is the fine-tune itself, 0 its head on the bare base; mean and worst of the members. A
budget is a fraction of the sum of the members' reference sizes, of adapters of their own bytes; bytes are of the whole
file. `rmm, paper` has one number of directions for all layers and takes what it takes. A merge is one model; each
member's own head is put on it, and its bytes are those of one model at 16 bits. Merges have the scale of their
defaults but where it is named.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="2", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import kinfold
from fleet import Member, fleet, machine, run_script
from grid import RESULTS
from kinfold.demo.train import accuracy
from kinfold.report.figures import curves
from lora_fleet import STARTS, lora_fleet
from points import is_measured, kept_points

BUDGETS = ["1/40", "1/107", "1/19", "1/400", "1/53", "1/27"]  # 1/107 to 1/19: .15 to .85 of rank-16 pairs at 16 bits
ADAPTER_BUDGETS = ["1/16", "1/8", "1/4", "1/32", "1/64", "1/128"]
METHODS: dict[str, dict[str, Any]] = {
    "packs": {"method": "packs"},
    "truncsvd": {"method": "truncsvd"},
    "rmm": {"method": "rmm"},
    "jd": {"method": "jd"},
    "mixed": {"low_rank": True},
}
DIRECTIONS = (1, 2, 3)  # 4 would cost more than keeping each member's factors
MERGES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "task_arithmetic .3": {"method": "task_arithmetic", "scale": 0.3},
    "ties": {"method": "ties"},
    "dare_ties": {"method": "dare_ties"},
    "della": {"method": "della"},
    "knots": {"method": "knots"},
    "core_space": {"method": "core_space"},
    "clip_mean": {"method": "clip_mean"},
    "median": {"method": "median"},
}
SLOW = ("knots", "core_space")  # singular vectors of every matrix, for each head anew


def jobs(members: list[Member], budgets: list[str]) -> list[dict[str, Any]]:
    """The most telling first."""
    count = len(members)
    found = [{"label": label, "budget": budgets[0], "members": count} for label in METHODS]
    found += [{"label": "rmm, paper", "directions": p, "members": count} for p in DIRECTIONS]
    found += [{"label": label, "members": count} for label in MERGES if label not in SLOW]
    found += [{"label": label, "budget": b, "members": count} for label in METHODS for b in budgets[1:]]
    found += [{"label": label, "budget": budgets[0], "members": n} for n in range(2, count) for label in METHODS]
    found += [{"label": label, "members": count} for label in SLOW]
    return found


def measure(job: dict[str, Any], members: list[Member]) -> dict[str, Any]:
    """Fold or merge, give every member back, score it."""
    some = members[: job["members"]]
    paths = {member.task: member.directory for member in some}
    base = some[0].base
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.perf_counter()
        if job["label"] in MERGES:
            gains = {member.task: _merged(member, paths, base, folder, MERGES[job["label"]]) for member in some}
            found: dict[str, Any] = {"bytes": 2 * sum(t.numel for t in _tensors(base))}
        else:
            chosen = METHODS.get(job["label"]) or {"preset": "paper", "directions": job["directions"]}
            family = folder / "family.kin.safetensors"
            report = kinfold.fold(paths, family, base=base, budget=job.get("budget", "1/3"), **chosen)
            found = {
                "bytes": report.file_bytes,
                "reference_bytes": report.kept_bytes,
                "fold_seconds": time.perf_counter() - started,
                "errors": {row.name: row.error for row in report.members},
                "shared_energy": report.shared_energy,
            }
            gains = {member.task: _unfolded(member, family, folder) for member in some}
    mean = sum(gains.values()) / len(gains)
    return {**job, **found, "gain_mean": mean, "gain_worst": min(gains.values()), "gains": gains}


def _tensors(base: Path) -> list[Any]:
    from kinfold.checkpoint import Checkpoint

    return list(Checkpoint.open(base).tensors.values())


def _merged(member: Member, paths: dict[str, Path], base: Path, folder: Path, options: dict[str, Any]) -> float:
    out = folder / "merged"
    heads = member.task if member.head is None else "error"  # an adapter has none
    kinfold.merge(base, paths, out, heads=heads, overwrite=True, dominance="off", **options)
    return _gain(member, out)


def _unfolded(member: Member, family: Path, folder: Path) -> float:
    out = folder / "back"
    shutil.rmtree(out, ignore_errors=True)
    kinfold.unfold(family, member.task, out, base=member.base)
    return _gain(member, out)


def _gain(member: Member, directory: Path) -> float:
    score = accuracy(directory, member.test, head=member.head, labels=member.labels)
    return (score - member.zero_delta) / (member.after - member.zero_delta)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fold and merge the fleet.")
    parser.add_argument("--adapters", choices=STARTS)
    start = parser.parse_args().adapters
    members, budgets = (lora_fleet(start), ADAPTER_BUDGETS) if start else (fleet(0), BUDGETS)
    name = f"family_lora_{start}" if start else "family"
    with kept_points(name) as (done, keep):
        for job in [job for job in jobs(members, budgets) if not is_measured(job, done)]:
            keep(measure(job, members))
            print({key: value for key, value in done[-1].items() if key not in ("errors", "gains")}, flush=True)
            save(name, done, len(members))
    save(name, done, len(members))


def save(name: str, points: list[dict[str, Any]], count: int) -> None:
    """JSON and figure of what is measured so far."""
    content = {"machine": machine(), "kinfold": kinfold.__version__, "seed": 0, "points": points}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    whole = [point for point in points if point["members"] == count and point["label"] not in MERGES]
    series = {
        label: sorted((point["bytes"], point["gain_mean"]) for point in whole if point["label"] == label)
        for label in [*METHODS, "rmm, paper"]
    }
    merges = [point for point in points if point["label"] in MERGES]
    levels = {"each fine-tune as it is": 1.0}
    if merges:
        best = max(merges, key=lambda point: point["gain_mean"])
        levels[f"best merge to one model ({best['label']})"] = best["gain_mean"]
    svg = curves(
        {label: curve for label, curve in series.items() if curve},
        x="bytes of the whole family",
        y=f"recovered gain, mean of {count} members",
        levels=levels,
        floor=0.0,
    )
    (RESULTS / f"{name}.svg").write_text(svg)


if __name__ == "__main__":
    run_script(main)
