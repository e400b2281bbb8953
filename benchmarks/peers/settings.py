"""The rivals' settings that are worth a place in a table, found by trial on two tasks of the dev fleet.

At equal bytes a wider value means a smaller share of kept entries: density = bits a weight / value bits. So a
sweep over widths is the sweep over densities, and `best` says which one wins at each budget.
"""

from collections.abc import Sequence
from typing import Any

from grid import Setting

DARE = [Setting(f"dare {width} bit", "dare", {"value_bits": width}) for width in (16, 8, 4, 1)]
ULTRADELTA = [Setting(f"ultradelta {width} bit", "ultradelta", {"value_bits": width}) for width in (3, 2, 1)]
DELTACOME = [Setting("deltacome", "deltacome")]
DISTILLED = [Setting("bitdelta, distilled", "peers.distill:distilled", rows=256)]


def best(rows: Sequence[dict[str, Any]], settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """For each budget the row of `grid.summary` with the highest mean gain among `settings`."""
    labels = {setting.label for setting in settings}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = found.get(row["budget"])
        if row["label"] in labels and (known is None or row["gain_mean"] > known["gain_mean"]):
            found[row["budget"]] = row
    return found
