"""What p-values of many rows say together: how many are outliers, and which ones may be named."""

from __future__ import annotations

import numpy as np


def outlier_share(p: np.ndarray) -> float:
    """max(0, 1 - 2 * share of p above 1/2): ordinary rows' p-values are uniform, outliers' lie below (Storey 2002).

    It is too low where outliers look ordinary, never too high but by chance.
    """
    return max(0.0, 1 - 2 * float(np.mean(p > 0.5)))


def benjamini_hochberg(p: np.ndarray, q: float) -> np.ndarray:
    """Which to name so that at most a share q of the named is wrong on average: bool (n,) (arXiv 2104.08279).

    The largest i is taken with the i-th smallest p at most q i / n, and all p-values up to it are named.
    """
    order = np.sort(p)
    within = np.flatnonzero(order <= q * np.arange(1, len(p) + 1) / len(p))
    return p <= order[within[-1]] if len(within) else np.zeros(len(p), dtype=bool)


def wanted(share: float, count: int) -> int:
    """Rows a filter hands to a head: `share` of them, at least 10 and 2 %, at most half."""
    return round(float(np.clip(share * count, max(10.0, 0.02 * count), 0.5 * count)))
