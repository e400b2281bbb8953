"""Where small packs break: variants trained far from their base, at equal bytes.

    python benchmarks/fleet.py --seed 0 --tasks wn
    python benchmarks/breaking.py            # about 40 CPU minutes; results/breaking.json and breaking.svg

The task wn of the dev fleet, fine-tuned as there, with three and ten times the learning rate, and for ten times the
steps. A variant that has not learnt its task is listed without points.
Beside each gain stands the relative norm of the delta: ||variant - base|| / ||base|| over the encoder's matrices.
"""

import json
import math
import os
from dataclasses import replace
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    os.environ["HF_HUB_OFFLINE"] = "1"

from safetensors.torch import load_file

import kinfold
from fleet import ALL_TASKS, Member, fleet, machine
from grid import RESULTS, Setting, measure
from kinfold.demo import train as recipe
from kinfold.demo.sources import cache_dir
from kinfold.report.figures import curves

SETTINGS = [
    Setting("fold", "fold"),
    Setting("ultradelta 2 bit", "ultradelta", {"value_bits": 2}),
    Setting("dare 1 bit", "dare", {"value_bits": 1}),
    Setting("osd", "osd"),
    Setting("truncsvd int4", "truncsvd", {"value_bits": 4}),
]
BUDGETS = ["1/16", "1/64", "1/256"]
FAR = {  # learning rate and steps, as multiples of the fleet's
    "as the fleet": (1.0, 1),
    "three times the rate": (3.0, 1),
    "ten times the rate": (10.0, 1),
    "ten times the steps": (1.0, 10),
}


def far(member: Member, name: str) -> Member:
    """The member's task trained with another learning rate or number of steps, cached beside the fleet."""
    rate, times = FAR[name]
    if (rate, times) == (1.0, 1):
        return member
    directory = cache_dir() / "far" / name.replace(" ", "-") / member.task
    if not directory.is_dir():
        usual = recipe.ENCODER_LR
        recipe.ENCODER_LR = rate * usual
        recipe.train(member.base, ALL_TASKS[member.task].rows().train, directory, steps=300 * times, seed=0)
        recipe.ENCODER_LR = usual
    after = recipe.accuracy(directory, member.test, labels=member.labels)
    bare = recipe.accuracy(member.base, member.test, head=directory, labels=member.labels)
    return replace(member, directory=directory, after=after, zero_delta=bare)


def relative_norm(member: Member) -> float:
    base, own = (load_file(d / "model.safetensors") for d in (member.base, member.directory))
    names = [n for n in own if n in base and n.startswith("encoder") and own[n].dim() == 2]
    moved = sum(float((own[n] - base[n]).square().sum()) for n in names)
    return math.sqrt(moved / sum(float(base[n].square().sum()) for n in names))


def main() -> None:
    partial = cache_dir() / "bench" / "breaking.json"
    known: list[dict[str, Any]] = json.loads(partial.read_text()) if partial.exists() else []
    variants = []
    (usual,) = fleet(0, ["wn"])
    for name in FAR:
        member = far(usual, name)
        variants.append(
            {"variant": name, "norm": relative_norm(member), "after": member.after, "zero_delta": member.zero_delta}
        )
        print(variants[-1], flush=True)
        if member.after < member.zero_delta + 0.1:  # it has not learnt: there is no gain to recover
            continue
        for setting in SETTINGS:
            for budget in BUDGETS:
                if any((p["variant"], p["label"], p["budget"]) == (name, setting.label, budget) for p in known):
                    continue
                known.append({"variant": name, **measure(member, setting, budget, 0)})
                partial.write_text(json.dumps(known))
                print(known[-1], flush=True)
    content = {"machine": machine(), "kinfold": kinfold.__version__, "variants": variants, "points": known}
    (RESULTS / "breaking.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "breaking.svg").write_text(figure(known))


def figure(points: list[dict[str, Any]]) -> str:
    series = {
        f"{label}, {name}": [(p["bytes"], p["gain"]) for p in points if (p["label"], p["variant"]) == (label, name)]
        for name in dict.fromkeys(p["variant"] for p in points)
        for label in ("fold", "ultradelta 2 bit")
    }
    return curves(
        {label: sorted(curve) for label, curve in series.items()},
        x="bytes of the whole file",
        y="recovered gain, wn",
        levels={"uncompressed": 1.0},
        floor=0.0,
    )


if __name__ == "__main__":
    main()
