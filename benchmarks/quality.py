"""Recovered gain of every codec at equal whole-file bytes, on the six fine-tunes of the dev fleet.

    python benchmarks/fleet.py --seed 0      # once: trains the fleet
    python benchmarks/quality.py             # about 40 CPU minutes; results/quality.json and quality.svg

Gain is (accuracy of the restored variant - accuracy with its head on the bare base) / (variant's own - the
same): 1 is the uncompressed variant, 0 the bare base. A budget is a fraction of the reference size: 2 bytes
for every weight in a tensor that differs from the base.
"""

from grid import RESULTS, Setting, run_grid, save, summary
from kinfold.report.figures import curves

BUDGETS = ["1/8", "1/16", "1/32", "1/64", "1/128", "1/256"]
SETTINGS = [
    Setting("truncsvd fp16", "truncsvd"),
    Setting("truncsvd int4", "truncsvd", {"value_bits": 4}),
    Setting("osd", "osd"),
    Setting("osd, paper layout", "osd", {"layout": "paper"}),
    Setting("bitdelta", "bitdelta"),
    Setting("dare 4 bit", "dare"),
    Setting("dare 1 bit", "dare", {"value_bits": 1}),
    Setting("magnitude", "magnitude"),
]


def main() -> None:
    points = run_grid("quality", SETTINGS, BUDGETS)
    rows = summary(points, SETTINGS, BUDGETS)
    print(save("quality", SETTINGS, points, rows))
    print(f"{'codec':18}", *(f"{budget:>14}" for budget in BUDGETS))
    for setting in SETTINGS:
        cells = {row["budget"]: row for row in rows if row["label"] == setting.label}
        text = [f"{cells[b]['gain_mean']:.3f} ({cells[b]['gain_worst']:.2f})" if b in cells else "-" for b in BUDGETS]
        print(f"{setting.label:18}", *(f"{cell:>14}" for cell in text))
    series = {
        setting.label: [(row["bytes"], row["gain_mean"]) for row in rows if row["label"] == setting.label]
        for setting in SETTINGS
    }
    svg = curves(
        series,
        x="bytes of the whole file",
        y="recovered gain, mean of six tasks",
        levels={"uncompressed": 1.0},
        floor=0.0,
    )
    (RESULTS / "quality.svg").write_text(svg)


if __name__ == "__main__":
    main()
