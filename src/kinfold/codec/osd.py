"""`osd`: Optimal Singular Damage, a low-rank pair of larger rank with only its important entries kept.

Optimal Singular Damage, arXiv 2511.02681. `layout="paper"` stores what the paper counts (32-bit values,
flat indices of fixed width); `layout="compact"` spends the same bytes on positions at their coded size
and on narrow values, which keeps several times as many entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from kinfold.codec.base import (
    Codec,
    CodecConfig,
    Importance,
    Payload,
    Plan,
    Shape,
    check_finite,
    require_bits,
)
from kinfold.codec.damage import Pair, Score, Tail, scores, squared_error
from kinfold.codec.factors import (
    decode_dense,
    decode_sparse,
    dense_bytes,
    encode_dense,
    encode_sparse,
    index_width,
    matrix_sides,
    product,
    sparse_bytes,
)
from kinfold.codec.lowrank import Factors, as_matrix, leading
from kinfold.errors import CodecError, PackError

EXTRA_RANKS = (1, 2, 3, 4, 6, 8)  # the paper's c, tried in turn
WIDTHS = (16, 8, 4, 3, 2)
AUTO_WIDTHS = (8, 4, 3, 2)  # 16 bits never had the least error, at any budget from 0.5 to 32 ranks
_KEPT = 0.45  # keeping about this share of the entries is best at every width from 2 to 16
_POSITION_BITS = 2.5  # what a position then costs: an opening guess, the size is bisected exactly


class OsdConfig(CodecConfig):
    """Options of `osd`.

    Attributes:
        score: what ranks the entries: `frob`, the Frobenius damage of deleting the entry; `mag`, its size;
            `fisher` and `taylor`, first- and second-order damage to the loss (these need calibration).
        extra_rank: the paper's c, the ranks beyond what a dense pair could afford; `auto` tries a grid.
        layout: `paper` for the paper's own bit accounting, `compact` for coded positions and values.
        value_bits: width of a kept value in the compact layout; `auto` tries 8, 4, 3 and 2.
        split: where the singular values go before entries are ranked: both factors, U or V.
        select: `joint` ranks the entries of both factors together, `half` keeps as many of each.
    """

    score: Score = "frob"
    extra_rank: int | Literal["auto"] = "auto"
    layout: Literal["compact", "paper"] = "compact"
    value_bits: Literal["auto", 32, 16, 8, 4, 3, 2] = "auto"
    split: Literal["sqrt", "left", "right"] = "sqrt"
    select: Literal["joint", "half"] = "joint"


class Osd(Codec):
    """Sparse factors of rank r + c in the bits of a dense pair of rank r."""

    name = "osd"
    Config = OsdConfig
    config: OsdConfig

    def __init__(self, config: CodecConfig | None = None) -> None:
        super().__init__(config)
        extra = self.config.extra_rank
        if extra != "auto" and extra < 0:
            raise CodecError(f"extra_rank must be 0 or more, got {extra}")
        if self.config.layout == "paper" and self.config.value_bits not in ("auto", 32):
            raise CodecError(
                f"layout=paper stores 32-bit values, value_bits={self.config.value_bits} does not fit",
                hint="--option layout=compact",
            )

    @property
    def needs_importance(self) -> bool:
        return self.config.score in ("fisher", "taylor")

    def weight(self, shape: Shape) -> float:
        return sum(matrix_sides(shape))

    def minimum_bits(self, shape: Shape) -> int:
        return 128  # room for one entry of each factor in any layout

    def plan(self, shape: Shape, dtype: torch.dtype, budget_bits: int) -> Plan:
        require_bits(self, shape, budget_bits)
        return Plan(budget_bits // 8)

    def _encode(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None, seed: int) -> Payload:
        self._require_importance(importance)
        candidates = self._candidates(as_matrix(delta), budget_bits, importance, seed)
        return min(candidates, key=lambda candidate: candidate[0])[1]  # the first of equals wins

    def decode(self, payload: Payload, shape: Shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return product(*self.factors(payload, shape), shape, dtype)

    def factors(self, payload: Payload, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        return _unpack(payload, *matrix_sides(shape))

    def survey(self, delta: torch.Tensor, budget_bits: int, importance: Importance | None) -> np.ndarray | None:
        """Squared error at each extra rank, where the layout is the paper's and c must be one for all."""
        if self.config.layout != "paper" or self.config.extra_rank != "auto":
            return None
        check_finite(delta)
        self._require_importance(importance)
        matrix = as_matrix(delta)
        factors = self._factors(matrix, budget_bits, 0)
        payloads = (_payload(self._paper(matrix, factors, budget_bits, c, importance)) for c in EXTRA_RANKS)
        return np.array([_error(matrix, payload) for payload in payloads])

    @property
    def surveys(self) -> bool:
        return self.config.layout == "paper" and self.config.extra_rank == "auto"

    def alternatives(self) -> list[Codec]:
        return [self.with_config(extra_rank=c) for c in EXTRA_RANKS] if self.surveys else []

    def top_rank(self, shape: Shape, budget_bits: int) -> int:
        return min(self._wanted_rank(matrix_sides(shape), budget_bits), *matrix_sides(shape))

    def settle(
        self, shapes: Sequence[Shape], surveys: Sequence[np.ndarray | None], total_bits: int
    ) -> tuple[Codec, list[int]]:
        found = [survey for survey in surveys if survey is not None]
        shares = self.shares(shapes, total_bits)
        if not found:
            return self, shares
        best = EXTRA_RANKS[int(np.argmin(np.sum(found, axis=0)))]
        return self.with_config(extra_rank=best), shares

    # --- candidates -----------------------------------------------------------------------------------

    def _require_importance(self, importance: Importance | None) -> None:
        if self.needs_importance and importance is None:
            raise CodecError(
                f"score={self.config.score} needs calibration",
                hint="pass --calibrate FILE.jsonl, or --option score=frob",
            )

    def _wanted_rank(self, shape: Sequence[int], bits: int) -> int:
        """The largest rank that any candidate uses."""
        sides = sum(shape)
        dense = bits // (32 * sides)
        extra = max(EXTRA_RANKS) if self.config.extra_rank == "auto" else self.config.extra_rank
        wanted = dense + extra
        if self.config.layout == "compact":
            narrow = min(w for w in self._widths())
            widest = max(1, int(np.ceil(_opening_rank(bits, narrow, sides))))
            wanted = max(widest if self.config.extra_rank == "auto" else wanted, bits // (narrow * sides) + 1)
        return wanted

    def _factors(self, matrix: torch.Tensor, bits: int, seed: int) -> Factors:
        return leading(matrix, self._wanted_rank(matrix.shape, bits), seed)

    def _widths(self) -> tuple[int, ...]:
        return AUTO_WIDTHS if self.config.value_bits == "auto" else (self.config.value_bits,)

    def _candidates(
        self, matrix: torch.Tensor, bits: int, importance: Importance | None, seed: int
    ) -> Iterator[tuple[float, Payload]]:
        """(squared error, payload) of every setting; simpler ones first, so that they win ties."""
        factors = self._factors(matrix, bits, seed)
        for payload in self._payloads(matrix, factors, bits, importance):
            yield _error(matrix, payload), payload

    def _payloads(
        self, matrix: torch.Tensor, factors: Factors, bits: int, importance: Importance | None
    ) -> Iterator[Payload]:
        """Nothing at all, dense pairs, and sparse pairs of larger rank; never two pairs in memory."""
        (n, d), top = matrix.shape, factors.s.numel()
        yield _payload(_dense(factors, 0, 32))
        if self.config.layout == "paper":
            yield _payload(_dense(factors, _dense_rank(n, d, top, 32, bits), 32))
            ranks = EXTRA_RANKS if self.config.extra_rank == "auto" else (self.config.extra_rank,)
            for extra in ranks:
                yield _payload(self._paper(matrix, factors, bits, extra, importance))
            return
        for width in self._widths():
            rank = _dense_rank(n, d, top, width, bits)
            # what a whole column is too large for goes to the best entries of the next ones
            tails = (rank, 1 + rank // 32), (0, self._sparse_rank(matrix.shape, top, bits, width))
            for full, columns in tails:
                yield _payload(self._compact(_dense(factors, full, width), factors, bits, columns, importance))

    def _sparse_rank(self, sides: Sequence[int], top: int, bits: int, width: int) -> int:
        """Columns of a pair that is sparse throughout."""
        extra = self.config.extra_rank
        rank = (
            int(np.ceil(_opening_rank(bits, width, sum(sides))))
            if extra == "auto"
            else bits // (32 * sum(sides)) + extra
        )
        return max(1, min(rank, top))

    def _ordered(
        self, factors: Factors, columns: slice, cost: tuple[int, int], importance: Importance | None
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Both factors, and their flat entries (A's, then C's) from most to least worth keeping."""
        s = factors.s[columns]
        left, right = {"sqrt": (s.sqrt(), s.sqrt()), "left": (s, s**0), "right": (s**0, s)}[self.config.split]
        a, c = factors.u[:, columns] * left, factors.v[:, columns] * right
        z_a, z_c = scores(self.config.score, a, c, importance)
        if self.config.select == "half":
            loss = np.concatenate([-_rank_order(z_a), -_rank_order(z_c)])
        else:  # in place: these arrays are as large as the factors
            loss = np.concatenate([z_a.reshape(-1).numpy(), z_c.reshape(-1).numpy()])
            loss[: z_a.numel()] /= -cost[0]
            loss[z_a.numel() :] /= -cost[1]
        del z_a, z_c
        return a, c, np.argsort(loss, kind="stable")

    def _paper(
        self, matrix: torch.Tensor, factors: Factors, bits: int, extra: int, importance: Importance | None
    ) -> Pair:
        n, d = matrix.shape
        k = max(1, min(bits // (32 * (n + d)) + extra, factors.s.numel()))
        cost = 32 + index_width(n * k), 32 + index_width(d * k)
        a, c, order = self._ordered(factors, slice(0, k), cost, importance)
        spent = np.cumsum(np.where(order < n * k, cost[0], cost[1]))
        # sections are padded to a byte each, so up to 14 bits of the budget are set aside for them
        count = int(np.searchsorted(spent, bits - 14, side="right"))
        return replace(_dense(factors, 0, 32), tail=Tail.of(a, c, order[:count]))

    def _compact(self, dense: Pair, factors: Factors, bits: int, columns: int, importance: Importance | None) -> Pair:
        """The dense columns, and of the next `columns` the largest prefix of entries that fits."""
        (n, rank), d, width = dense.a.shape, dense.c.shape[0], dense.width
        columns = min(columns, factors.s.numel() - rank)
        room = bits // 8 - dense_bytes(n, d, rank, width)
        if columns == 0:
            return dense
        a, c, order = self._ordered(factors, slice(rank, rank + columns), (1, 1), importance)
        kept_a = np.cumsum(order < a.numel(), dtype=np.int32)

        def size(count: int) -> int:
            in_a = int(kept_a[count - 1])
            tail_a = sparse_bytes(a.numel(), in_a, columns, width)
            return tail_a + sparse_bytes(c.numel(), count - in_a, columns, width)

        low, high = 0, order.size  # sizes rise with the prefix, but for the last step: all entries need no
        while low < high:  # positions. Such a pair is dense, and dense pairs are candidates already
            middle = (low + high + 1) // 2
            low, high = (middle, high) if size(middle) <= room else (low, middle - 1)
        return replace(dense, tail=Tail.of(a, c, order[:low])) if low and size(low) <= room else dense


def _dense(factors: Factors, rank: int, width: int) -> Pair:
    return Pair(*factors.balanced(rank), width)


def _opening_rank(bits: int, width: int, sides: int) -> float:
    return bits / (width + _POSITION_BITS) / (_KEPT * sides)


def _dense_rank(n: int, d: int, full: int, width: int, bits: int) -> int:
    rank = min(bits // (width * (n + d)), full)
    while rank and dense_bytes(n, d, rank, width) > bits // 8:
        rank -= 1
    return rank


def _rank_order(z: torch.Tensor) -> np.ndarray:
    """Minus each entry's place by falling score, so that both factors give up entries in step."""
    order = np.argsort(-z.reshape(-1).numpy(), kind="stable")
    place = np.empty(order.size)
    place[order] = -np.arange(order.size)
    return place


def paper_bits(n: int, d: int, k: int, kept_a: int, kept_c: int) -> int:
    """The paper's mu: `32 (s_u + s_v) + ceil(log2(n k)) s_u + ceil(log2(d k)) s_v` bits."""
    return 32 * (kept_a + kept_c) + index_width(n * k) * kept_a + index_width(d * k) * kept_c


def _payload(pair: Pair) -> Payload:
    full, width, tail = pair.a.shape[1], pair.width, pair.tail
    data = encode_dense(pair.a, pair.c, width)
    if tail is None:
        return Payload(data, {"k": full, "w": width})
    data += encode_sparse(tail.a, tail.kept_a, width) + encode_sparse(tail.c, tail.kept_c, width)
    kept = [tail.kept_a.size, tail.kept_c.size]
    return Payload(data, {"k": full + tail.a.shape[1], "w": width, "f": full, "s": kept})


def _error(matrix: torch.Tensor, payload: Payload) -> float:
    """Squared error of the pair as the decoder will see it."""
    return squared_error(matrix, *_unpack(payload, *matrix.shape))


def _unpack(payload: Payload, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors A (n, k) and C (d, k), float32, from a payload that nobody has checked yet."""
    k, width = payload.params.get("k"), payload.params.get("w")
    full, kept = payload.params.get("f", k), payload.params.get("s", [0, 0])
    if type(k) is not int or not 0 <= k <= min(n, d) or type(width) is not int or width not in (32, *WIDTHS):
        raise PackError(f"osd: rank {k!r} at {width!r} bits is impossible for {n} x {d}")
    if type(full) is not int or not 0 <= full <= k:
        raise PackError(f"osd: {full!r} of {k} columns cannot be whole")
    if not isinstance(kept, list) or [type(s) for s in kept] != [int, int]:
        raise PackError(f"osd: kept counts {kept!r} are impossible")
    tail = k - full
    if not (0 <= kept[0] <= n * tail and 0 <= kept[1] <= d * tail):
        raise PackError(f"osd: {kept} entries cannot be kept of {n * tail} and {d * tail}")
    start = dense_bytes(n, d, full, width)
    a, c = decode_dense(payload.data[:start], n, d, full, width)
    if tail == 0:
        if len(payload.data) != start:
            raise PackError(f"osd: {len(payload.data) - start} bytes follow the last section")
        return a, c
    split = start + sparse_bytes(n * tail, kept[0], tail, width)
    tail_a = decode_sparse(payload.data[start:split], n, tail, kept[0], width)
    tail_c = decode_sparse(payload.data[split:], d, tail, kept[1], width)
    return torch.cat([a, tail_a], 1), torch.cat([c, tail_c], 1)
