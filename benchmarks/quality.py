"""Recovered gain of every codec at equal whole-file bytes, on the six fine-tunes of the dev fleet, three seeds.

    python benchmarks/fleet.py --seed 0      # once, and for seeds 1 and 2: trains the fleet
    python benchmarks/quality.py             # about 3 CPU hours; results/quality.json and quality.svg

Gain is (accuracy of the restored variant - accuracy with its head on the bare base) / (variant's own - the
same): 1 is the uncompressed variant, 0 the bare base. A budget is a fraction of the reference size: 2 bytes
for every weight in a tensor that differs from the base. Seed 0 draws the curves; seeds 1 and 2 repeat `fold`
and the rivals that come nearest to it at a few budgets.
"""

from grid import RESULTS, Setting, ahead, run_grid, save, summary
from kinfold.report.figures import curves

CURVE = ["1/8", "1/16", "1/32", "1/64", "1/100", "1/128", "1/256", "1/400", "1/800", "1/1500"]
GOALS = ["1/100", "1/400", "1/1500"]
REPEATED = ["1/64", "1/256", "1/1500"]
FOLD = [Setting("fold", "fold")]
CALIBRATED = [Setting("fold, calibrated", "fold", rows=256)]
NEAREST = [
    Setting("dare 4 bit", "dare"),
    Setting("dare 1 bit", "dare", {"value_bits": 1}),
    Setting("ultradelta 2 bit", "ultradelta", {"value_bits": 2}),
    Setting("ultradelta 1 bit", "ultradelta", {"value_bits": 1}),
]
RIVALS = [
    *NEAREST,
    Setting("truncsvd fp16", "truncsvd"),
    Setting("truncsvd int4", "truncsvd", {"value_bits": 4}),
    Setting("deltacome", "deltacome"),
    Setting("osd", "osd"),
    Setting("osd, paper layout", "osd", {"layout": "paper"}),
    Setting("bitdelta", "bitdelta"),
    Setting("magnitude", "magnitude"),
]
DRAWN = ["fold", "dare 4 bit", "dare 1 bit", "ultradelta 1 bit", "osd", "truncsvd int4", "truncsvd fp16", "magnitude"]
PLAN = [  # settings, budgets, seeds: the most telling first
    (FOLD, CURVE, [0]),
    (FOLD, [*REPEATED, "1/100", "1/400"], [1, 2]),
    (RIVALS, ["1/16", "1/64", "1/256", "1/1500"], [0]),
    (NEAREST, REPEATED, [1, 2]),
    (CALIBRATED, GOALS, [0]),
    (CALIBRATED, GOALS, [1, 2]),
    (RIVALS, [b for b in CURVE if b not in ("1/100", "1/800")], [0]),
]


def main() -> None:
    settings = [*FOLD, *CALIBRATED, *RIVALS]
    points = {}
    for some, budgets, seeds in PLAN:
        for point in run_grid("quality", some, budgets, seeds):
            points[point["task"], point["seed"], point["label"], point["budget"]] = point
        report(settings, [points[key] for key in sorted(points)])


def report(settings: list[Setting], points: list[dict]) -> None:
    """Table to stdout; JSON and figure of what is measured so far."""
    rows = summary(points, settings, CURVE)
    print(save("quality", settings, points, rows, ahead=ahead(points, "fold", NEAREST)))
    print(f"{'codec':18}", *(f"{budget:>14}" for budget in CURVE))
    for setting in settings:
        cells = {row["budget"]: row for row in rows if row["label"] == setting.label}
        text = [f"{cells[b]['gain_mean']:.3f} ({cells[b]['gain_worst']:.2f})" if b in cells else "-" for b in CURVE]
        print(f"{setting.label:18}", *(f"{cell:>14}" for cell in text), flush=True)
    first = summary([point for point in points if point["seed"] == 0], settings, CURVE)
    series = {label: [(row["bytes"], row["gain_mean"]) for row in first if row["label"] == label] for label in DRAWN}
    svg = curves(
        {label: curve for label, curve in series.items() if curve},
        x="bytes of the whole file",
        y="recovered gain, mean of six tasks",
        levels={"uncompressed": 1.0},
        floor=0.0,
    )
    (RESULTS / "quality.svg").write_text(svg)


if __name__ == "__main__":
    main()
