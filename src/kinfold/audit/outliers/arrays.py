"""Arrays that a request monitor takes: checked, and put together as views."""

from __future__ import annotations

from typing import Any

import numpy as np

from kinfold.audit.outliers.filters import Views
from kinfold.errors import AuditError


def views(what: str, features: Any, logits: Any, gradients: Any) -> Views:
    """Views of a model's features, logits and gradients.

    Args:
        what: they are of: `reference`, `log` or `table`.
        features: (n, d).
        logits: (n, c) with c >= 2, energies (n,), or None.
        gradients: (n, g), or None.

    Raises:
        AuditError: other shapes, or a value that is not finite; its row is named.
    """
    found = _floats(f"features of the {what}", features, (2,))
    known = None if logits is None else _floats(f"logits of the {what}", logits, (1, 2), len(found))
    if known is not None and known.ndim == 2 and known.shape[1] < 2:
        raise AuditError(
            f"the model has {known.shape[1]} output; logits of two classes or more are needed",
            hint="--filter knn looks at features only",
        )
    slopes = None if gradients is None else _floats(f"gradients of the {what}", gradients, (2,), len(found))
    return Views.of(found, known, slopes)


def _floats(what: str, given: Any, sides: tuple[int, ...], count: int | None = None) -> np.ndarray:
    found = np.asarray(given, dtype=np.float64)
    if found.ndim not in sides or not found.size or count not in (None, len(found)):
        rows = "n" if count is None else f"{count}"
        raise AuditError(f"{what} are of shape {found.shape}; ({rows}, columns) is allowed")
    wrong = np.flatnonzero(~np.isfinite(found.reshape(len(found), -1)).all(axis=1))
    if len(wrong):
        raise AuditError(f"{what} are not finite in row {wrong[0]}")
    return found


def require_alike(ref: Views, wild: Views) -> None:
    """Raise AuditError where a reference and a log are not of one model."""
    if ref.features.shape[1] != wild.features.shape[1]:
        raise AuditError(
            f"the reference has {ref.features.shape[1]} features, the log {wild.features.shape[1]}; those of one model "
            "are allowed"
        )
    for name in ("energy", "doubt", "gradients"):
        mine, theirs = getattr(ref, name), getattr(wild, name)
        if (mine is None) != (theirs is None) or (mine is not None and mine.shape[1:] != theirs.shape[1:]):
            kind = "gradients" if name == "gradients" else "logits"
            raise AuditError(f"{kind} of the reference and of the log must both be there, and of one width")


def distinct(log: Views) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that are no copies of an earlier one, and for each row its place among those."""
    parts = [log.features, *(part[:, None] for part in (log.energy, log.doubt) if part is not None)]
    table = np.ascontiguousarray(np.concatenate(parts, axis=1) + 0.0)  # -0 is 0
    whole = table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1])))[:, 0]
    _, first, back = np.unique(whole, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return first[order], place[back.reshape(-1)]


def rows(some: Views, numbers: np.ndarray) -> Views:
    """The views of some rows."""
    return Views(
        some.features[numbers],
        None if some.energy is None else some.energy[numbers],
        None if some.doubt is None else some.doubt[numbers],
        None if some.gradients is None else some.gradients[numbers],
    )
