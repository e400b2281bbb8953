"""Before a byte is coded: which codec and how many bits each unit gets, so that the whole file fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from kinfold.budget import Budget
from kinfold.codec import Codec, Importance, Payload, create, exact
from kinfold.codec.factors import matrix_sides
from kinfold.codec.sums import is_finite
from kinfold.codec.threads import ordered_map
from kinfold.errors import BudgetError, CodecError
from kinfold.pack.format import entry_sizes, pack_bytes, short_hash
from kinfold.pack.manifest import Manifest, Unit
from kinfold.pack.source import Deltas, Sources
from kinfold.pack.units import FLOATS, Draft, is_matrix

KEPT_SHARE = 20  # what is kept (norms, biases, heads) may take a twentieth of the file at full fidelity
_WIDTHS = (8, 4)  # then these bits a value, in turn
_LAST_BITS, _HEAD_BITS = 2, 1024  # and at last, by a codec that takes vectors, so many, and its tables
_BUDGET_TEXT = 16  # bytes that another budget's own text may take in the manifest


@dataclass(frozen=True)
class Job:
    """A unit with its codec (None: exact) and bits; `ready` is a payload that planning had to code already."""

    draft: Draft
    codec: Codec | None
    bits: int
    ready: Payload | None = None


Importances = Callable[[str], Importance | None]


def plan(
    sources: Sources,
    drafted: Sequence[Draft],
    codec: Codec | None,
    budget: Budget | None,
    skeleton: Manifest,
    files_bytes: int,
    importance: Importances,
    *,
    spare: int = 0,
) -> tuple[list[Job], int]:
    """Split the budget.

    Args:
        sources: base and variant.
        drafted: units, matrices first.
        codec: of the matrices; None when everything is kept exactly.
        budget: of the whole file; None when everything is kept exactly.
        skeleton: the manifest without units, to know what it will take.
        files_bytes: bytes of config and tokenizer files.
        importance: what calibration says of a tensor, by name.
        spare: bytes to leave unused, after a first plan came out too large.

    Returns:
        The jobs in file order, and about the most bytes that the whole file takes.

    Raises:
        BudgetError: the budget cannot hold what must be kept; the smallest possible is named.
    """
    matrices, kept = [], []
    for draft in drafted:
        (matrices if draft.matrix and not _poisoned(sources, draft) else kept).append(draft)
    if codec is None or budget is None:
        raw = sum(draft.nbytes for draft in kept)
        overhead = _overhead(skeleton, [], kept, None, 0, files_bytes)
        return [Job(draft, None, 8 * draft.nbytes) for draft in kept], raw + overhead
    total = budget.file_bytes(skeleton.reference_bytes)
    if total is None:
        bits = [budget.matrix_bits(matrix_sides(draft.shape)) for draft in matrices]
        settled, _ = _settle(sources, matrices, codec, bits, importance)
        jobs = _matrix_jobs(matrices, settled, bits) + [_exact_job(sources, draft) for draft in kept]
        payloads = sum(-(-job.bits // 8) for job in jobs)
        return jobs, payloads + _overhead(skeleton, matrices, kept, codec, payloads, files_bytes)
    whole = sum(draft.nbytes for draft in drafted) + _overhead(skeleton, [], drafted, None, 0, files_bytes)
    if codec.takes_vectors and whole <= total:  # nothing need be lost
        return [Job(draft, None, 8 * draft.nbytes) for draft in drafted], whole
    overhead = _overhead(skeleton, matrices, kept, codec, total, files_bytes) + spare
    failure: tuple[BudgetError, int] | None = None
    for kept_jobs, last in keep(sources, kept, codec, total // KEPT_SHARE):
        taken = overhead + sum(-(-job.bits // 8) for job in kept_jobs)
        if taken > total and not last:
            continue
        if taken > total and not matrices:
            failure = (BudgetError("no tensor is left that could take less"), taken)
            continue
        try:
            settled, bits = _settle(sources, matrices, codec, 8 * (total - taken), importance)
        except BudgetError as error:
            failure = (error, taken)
            continue
        jobs = _matrix_jobs(matrices, settled, bits) + kept_jobs
        return jobs, overhead + sum(-(-job.bits // 8) for job in jobs)
    assert failure is not None
    error, taken = failure
    least = taken + error.least_bytes
    for _ in range(2):  # the header of a larger file holds larger numbers
        there = _overhead(skeleton, matrices, kept, codec, least, files_bytes) + spare
        least = max(least, taken + there - overhead + error.least_bytes + _BUDGET_TEXT)
    raise _too_small(budget, total, error, taken, least, skeleton.reference_bytes) from error


def _matrix_jobs(matrices: Sequence[Draft], codec: Codec, bits: Sequence[int]) -> list[Job]:
    return [Job(draft, codec, share) for draft, share in zip(matrices, bits, strict=True)]


def _settle(
    sources: Sources, matrices: Sequence[Draft], codec: Codec, given: int | list[int], importance: Importances
) -> tuple[Codec, list[int]]:
    """Survey every delta if the codec wants to, then let it settle; `given` is bits in all, or bits each."""
    if not matrices:
        return codec, []
    shapes = [draft.shape for draft in matrices]
    if isinstance(given, int) and given <= 0:
        codec.settle(shapes, [None] * len(shapes), given)  # its error knows the least that would do
    each = codec.shares(shapes, given) if isinstance(given, int) else given
    surveys: list[np.ndarray | None] = [None] * len(matrices)
    if codec.surveys:

        def look(job: tuple[Draft, int]) -> np.ndarray | None:
            draft, bits = job
            with naming(draft):
                return codec.survey(sources.delta(draft.pieces), bits, importance(draft.name))

        jobs = list(zip(matrices, each, strict=True))
        surveys = list(ordered_map(look, jobs, values=lambda job: job[0].numel))
    return codec.settle(shapes, surveys, sum(each) if isinstance(given, list) else given)


def _poisoned(sources: Deltas, draft: Draft) -> bool:
    """Whether small tensors hold NaN or infinity and are kept exactly; a matrix that does is refused later."""
    return not is_matrix(draft.pieces[0]) and not _finite(sources, draft)


def _finite(sources: Deltas, draft: Draft) -> bool:
    return is_finite(sources.delta(draft.pieces))


def keep(sources: Deltas, kept: Sequence[Draft], codec: Codec, room: int) -> Iterator[tuple[list[Job], bool]]:
    """Ways to keep what the codec does not take, most faithful first, and whether it is the last.

    They are: exact, 8 bits, 4 bits, and for a codec that takes vectors its own code at 2 bits a value.

    Ways that take more than `room` bytes are passed over, but for the last. Integers, and floats whose
    delta is not finite, are exact in all of them.
    """
    if sum(draft.nbytes for draft in kept) <= 4 * room:  # else exact cannot fit, and is not tried
        jobs = [_exact_job(sources, draft) for draft in kept]
        if sum(job.bits for job in jobs) <= 8 * room:
            yield jobs, not jobs
    ways: list[tuple[Codec, int]] = [(create("rtn", {"value_bits": width}), 0) for width in _WIDTHS]
    ways += [(codec, _LAST_BITS)] if codec.takes_vectors else []
    for rounding, bits in ways if kept else ():
        jobs = [_rounded_job(sources, draft, rounding, bits) for draft in kept]
        last = rounding is ways[-1][0]
        if last or sum(job.bits for job in jobs) <= 8 * room:
            yield jobs, last


def _exact_job(sources: Deltas, draft: Draft) -> Job:
    payload = exact.encode(sources.values(draft.pieces), sources.reference(draft.pieces))
    return Job(draft, None, 8 * len(payload), Payload(payload))


def _rounded_job(sources: Deltas, draft: Draft, rounding: Codec, bits: int) -> Job:
    """Rounded at `bits` a value, or at the codec's own width where that is 0."""
    if draft.pieces[0].dtype in FLOATS and _finite(sources, draft):
        least = rounding.minimum_bits(draft.shape)
        return Job(draft, rounding, max(least, _HEAD_BITS + bits * draft.numel) if bits else least)
    return _exact_job(sources, draft)


@contextmanager
def naming(draft: Draft) -> Iterator[None]:
    """Name the tensor in any error that a codec raises."""
    try:
        yield
    except (BudgetError, CodecError) as error:
        raise type(error)(f"`{draft.name}`: {error}", hint=error.hint) from error


def _overhead(
    skeleton: Manifest,
    matrices: Sequence[Draft],
    kept: Sequence[Draft],
    codec: Codec | None,
    total: int,
    files_bytes: int,
) -> int:
    """Bytes of everything but payloads, from a manifest of the same shape with made-up figures.

    Shares of the budget are guessed by size, as they decide which payloads are entries of their own.
    """
    weights = sum(draft.numel for draft in matrices)
    units = []
    for number, draft in enumerate([*matrices, *kept]):
        digits = (number * 7919 + 104729) % 899 + 100  # varied digits, as real figures have
        share = total * draft.numel // weights if draft.matrix and weights else draft.numel
        params = codec.params_like(digits) if codec else {}
        units.append(
            Unit(
                codec=codec.name if codec and draft.matrix else "rtn",
                bytes=share + digits % 10,
                pieces=list(draft.pieces),
                params=params if draft.matrix and codec else {"w": 8},
                error=digits / 1e3,
                norm=(1099 - digits) / 1e2,
            )
        )
    hashes = {name: short_hash(name.encode()) for name in entry_sizes(units, files_bytes)}
    planned = skeleton.model_copy(update={"units": units, "entries": hashes})
    payloads = sum(unit.bytes for unit in units)
    return int(1.01 * (pack_bytes(planned, files_bytes) - payloads)) + 32


def _too_small(
    budget: Budget, total: int, error: BudgetError, taken: int, least: int, reference_bytes: int
) -> BudgetError:
    kilobytes = -(-least // 1000)
    share = reference_bytes // (1000 * kilobytes)
    return BudgetError(
        f"a budget of `{budget.text}` is {total} bytes; header, norms, biases and new tensors take {taken} of "
        f"them, and {error}; the smallest possible is {least} bytes",
        hint=f"--budget {kilobytes}kB" + (f" (about 1/{share} of the reference size)" if share else ""),
        least_bytes=least,
    )
