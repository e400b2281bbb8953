"""Optimal Singular Damage against the dense pair it is built on, at the paper's own bit budgets.

    python benchmarks/fleet.py --seed 0
    python benchmarks/osd.py                 # about 50 CPU minutes; results/osd.json

`rank:R` gives every matrix the bits of a dense rank-R pair in 32-bit values. Norms, biases and heads are
exact and not part of that budget, alike for all settings; `bytes` counts them.
"""

from grid import Setting, run_grid, save, summary

BUDGETS = ["rank:1", "rank:4"]
SETTINGS = [
    Setting("truncsvd fp32", "truncsvd", {"value_bits": 32, "allocation": "uniform"}),
    Setting("osd paper mag", "osd", {"layout": "paper", "score": "mag"}),
    Setting("osd paper frob", "osd", {"layout": "paper", "score": "frob"}),
    Setting("osd paper frob, c=4", "osd", {"layout": "paper", "score": "frob", "extra_rank": 4}),
    Setting("osd paper fisher", "osd", {"layout": "paper", "score": "fisher"}, rows=48),
    Setting("osd paper taylor", "osd", {"layout": "paper", "score": "taylor"}, rows=48),
    Setting("osd compact 8 bit", "osd", {"value_bits": 8}),
    Setting("osd compact", "osd"),
]


def main() -> None:
    points = run_grid("osd", SETTINGS, BUDGETS)
    rows = summary(points, SETTINGS, BUDGETS)
    print(save("osd", SETTINGS, points, rows))
    for row in rows:
        print(
            f"{row['label']:20} {row['budget']:7} {row['bytes'] / 1e3:8.1f} kB  gain {row['gain_mean']:.3f} "
            f"(worst {row['gain_worst']:.3f})  accuracy {row['accuracy_mean']:.3f}  error {row['error_mean']:.3f}"
        )


if __name__ == "__main__":
    main()
