"""Rows of a report, put together from ranks, texts and baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kinfold.audit.influence.baselines import Bm25
from kinfold.audit.influence.ranking import Ends, Ranking
from kinfold.audit.influence.report import TEXT, ProbeInfluence, RankedRow
from kinfold.tasks import Row, text_of


class Listing:
    """Lists of training rows.

    Args:
        rows, hashes: the training rows and their hashes.
        ranking: places in it are among the distinct rows of the store.
        words: the index of all training rows; None without probes.
        count: rows a list.
    """

    def __init__(
        self, rows: Sequence[Row], hashes: Sequence[bytes], ranking: Ranking, words: Bm25 | None, count: int
    ) -> None:
        self._rows, self._hashes, self._ranking, self._words, self._count = rows, hashes, ranking, words, count
        self._places: dict[bytes, list[int]] = {}
        for place, one in enumerate(hashes):
            self._places.setdefault(one, []).append(place)

    def probes(self, probe: Sequence[Row], losses: np.ndarray) -> Iterator[ProbeInfluence]:
        """The mean over all first, where there are several, then each."""
        assert self._words is not None
        lexical = np.zeros((len(self._rows), 1))
        each = []
        for column, row in enumerate(probe):
            scores = self._words.scores(row)
            lexical[:, 0] += scores / len(probe)
            each.append(
                self._probe(column, column, text_of(row)[:TEXT], row.get("label"), float(losses[column]), scores)
            )
        if len(probe) > 1:
            yield self._probe(len(probe), None, "", None, float(losses.mean()), lexical[:, 0])
        yield from each

    def own(self) -> list[RankedRow]:
        """Rows of the highest influence on themselves."""
        order = np.argsort(-self._ranking.own, kind="stable")[: self._count]
        return [self._row(int(place)) for place in order]

    def _probe(
        self, column: int, probe: int | None, text: str, label: object, loss: float, lexical: np.ndarray
    ) -> ProbeInfluence:
        found = self._ranking
        top, bottom = (self._ends(ends, column, sign, lexical) for ends, sign in ((found.top, 1), (found.bottom, -1)))
        by_words = self._first(np.argsort(-lexical, kind="stable"))
        by_cosine = [self._given(int(place)) for place in found.cosine.rows[:, column]]
        mine = {row.row for row in top}
        rivals = {"bm25": by_words, "cosine": by_cosine}
        shared = {name: len(mine & set(rows)) / len(mine) for name, rows in rivals.items()}
        firsts = {name: rows[0] for name, rows in rivals.items()}
        return ProbeInfluence(probe, text, label, loss, top, bottom, shared, firsts)

    def _ends(self, ends: Ends, column: int, sign: int, lexical: np.ndarray) -> tuple[RankedRow, ...]:
        """One end of a probe's list; `sign` undoes that the lowest scores are kept with the sign changed."""
        listed = zip(ends.rows[:, column], ends.keys[:, column], ends.extra[:, column], strict=True)
        return tuple(self._row(int(place), (sign * float(key), float(more)), lexical) for place, key, more in listed)

    def _row(self, place: int, pair: tuple[float, float] | None = None, lexical: np.ndarray | None = None) -> RankedRow:
        """A row by its place among the distinct ones."""
        given, found = self._given(place), self._ranking
        row = self._rows[given]
        return RankedRow(
            row=given,
            copies=len(self._places[found.hashes[place]]),
            text=text_of(row)[:TEXT],
            label=row.get("label"),
            score=None if pair is None else pair[0],
            cosine=None if pair is None else pair[1],
            bm25=None if lexical is None else float(lexical[given]),
            self_score=float(found.own[place]),
            loss=float(found.losses[place]),
            norm=float(found.norms[place]),
        )

    def _given(self, place: int) -> int:
        return self._places[self._ranking.hashes[place]][0]

    def _first(self, order: np.ndarray) -> list[int]:
        """The first rows of an order, copies left out."""
        found: dict[int, None] = {}
        for given in order.tolist():
            found[self._places[self._hashes[given]][0]] = None
            if len(found) == self._count:
                break
        return list(found)
