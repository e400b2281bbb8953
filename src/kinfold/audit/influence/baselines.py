"""Simple rivals that stand beside every score: lexical match, gradient cosine and the plain loss."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from kinfold.tasks import Row, text_of

K1, B = 1.5, 0.75


class Bm25:
    """Training rows indexed by their words; k1 1.5, b 0.75.

    Words are lower-cased runs of letters, digits and underscores; rows of `input_ids` match by token. A word in df of
    n rows weighs log(1 + (n - df + 1/2) / (df + 1/2)), once for each time that it is in the query.
    """

    def __init__(self, train: Sequence[Row | str]) -> None:
        documents = [Counter(_words(row)) for row in train]
        lengths = np.array([sum(document.values()) for document in documents], np.float64)
        self._norms = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-12))
        self._places: dict[str, tuple[list[int], list[int]]] = {}
        for number, document in enumerate(documents):
            for word, count in document.items():
                rows, counts = self._places.setdefault(word, ([], []))
                rows.append(number)
                counts.append(count)

    def scores(self, query: Row | str) -> np.ndarray:
        """Of each training row: float64 (n,)."""
        total = len(self._norms)
        scores = np.zeros(total)
        for word, times in Counter(_words(query)).items():
            if word in self._places:
                rows, counts = (np.array(part) for part in self._places[word])
                weight = np.log1p((total - len(rows) + 0.5) / (len(rows) + 0.5))
                scores[rows] += times * weight * counts * (K1 + 1) / (counts + self._norms[rows])
        return scores


def bm25(train: Sequence[Row | str], probe: Sequence[Row | str]) -> np.ndarray:
    """BM25 of each training row for each probe as the query: float64 (n, m), see `Bm25`."""
    index = Bm25(train)
    return np.stack([index.scores(row) for row in probe], 1)


def _words(row: Row | str) -> list[str]:
    return re.findall(r"\w+", (row if isinstance(row, str) else text_of(row)).lower())


def gradient_cosine(gradients: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """Cosines of training gradients (n, k) with probe gradients (m, k), rescaled: (n, m); 0 where either vanishes."""
    return unit(gradients) @ unit(probe).T


def unit(gradients: np.ndarray) -> np.ndarray:
    """Rows of length 1, or 0 where they vanish."""
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients / np.where(lengths > 0, lengths, 1.0)


def loss_baseline(losses: np.ndarray) -> np.ndarray:
    """The rival of self-influence: the plain training loss of each row, (n,)."""
    return np.asarray(losses, np.float64)
