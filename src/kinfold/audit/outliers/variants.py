"""Which variant of a family is odd, and in which tensors: trained on accepted variants, asked of new ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from kinfold.audit.outliers import deltastats, threshold
from kinfold.audit.outliers.peers import Knn, Mahalanobis, ZNorm
from kinfold.audit.outliers.report import MethodScore, OddPart, VariantReport, VariantVerdict, Verdict
from kinfold.audit.outliers.rows import Fitted
from kinfold.audit.outliers.settings import Settings
from kinfold.audit.outliers.tccm import LEAST_ROWS, TCCM
from kinfold.audit.outliers.training import fit_models
from kinfold.errors import AuditError
from kinfold.pack.member import Base, Member, PathLike
from kinfold.pack.members import open_members
from kinfold.report.progress import progress

METHODS = ("tccm", "mahalanobis", "knn", "znorm")
SCALE_FLOOR = 0.05  # a few accepted variants can agree in a statistic by chance
TOLD = 5
MANY = 20_000  # statistics a variant
_PEERS = {"mahalanobis": Mahalanobis, "knn": Knn, "znorm": ZNorm}
_EXPECTED = {  # what a deviation is measured from
    "tccm": "what the other layers predict",
    "mahalanobis": "what the other layers predict",
    "knn": "the fifth nearest accepted variant",
    "znorm": "the accepted variants' mean",
}
Paths = Sequence[PathLike] | Mapping[str, PathLike]
Judged = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # scores, thresholds, p-values (m,); parts (m, d)


def variants(
    base: PathLike,
    accepted: Paths,
    candidates: Paths = (),
    *,
    method: Literal["tccm", "mahalanobis", "knn", "znorm"] = "tccm",
    preset: Literal["default", "paper"] = "default",
    level: Literal["tensor", "layer"] = "tensor",
    false_alarm: float = 0.05,
    seed: int = 0,
    device: str = "cpu",
) -> VariantReport:
    """Judge variants of one base by what the deltas of accepted ones look like.

    A row of statistics is taken of each delta (see `deltastats`), and a detector is trained on the accepted variants'
    rows. Its threshold comes from accepted variants that it has not seen. An ordinary verdict is no proof of a sound
    variant: who keeps these statistics is not found, nor is a variant of another base.

    Args:
        base: model directory.
        accepted: 5 or more model directories, adapters, or packs of one codec, known to be ordinary; named by the
            stems of their paths, or by a mapping's keys.
        candidates: those to judge; without any, each accepted variant is judged by a model of the others.
        method: whose scores decide: `tccm` (arXiv 2510.18328), `mahalanobis` with Ledoit-Wolf shrinkage, `knn` (the
            distance to the fifth neighbour) or `znorm` (the length of the standardised row).
        preset: of TCCM, `default` or `paper`.
        level: `layer` pools the matrices of a layer, for very deep models.
        false_alarm: share of ordinary candidates that may be called odd; without candidates, the chance that any of
            the family is.
        seed: of the nets and folds.
        device: where TCCM is trained, as torch names it.

    Raises:
        AuditError: fewer than 5 accepted variants, the same one twice, mixed codecs, no tensor that all have in the
            base's shape, a delta that is not finite, a false alarm outside (0, 1), or a seed below 0.
        ValueError: a method, preset or level that is not allowed.
        WrongBaseError: a pack of another base.
        CheckpointError, PackError, AdapterError: a member cannot be read.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; {', '.join(map(repr, METHODS))} are allowed")
    if not 0 < false_alarm < 1:
        raise AuditError(f"the false alarm is {false_alarm:g}; a number between 0 and 1 is allowed")
    if seed < 0:
        raise AuditError(f"the seed is {seed}; a whole number of 0 or more is allowed")
    settings = Settings.of(TCCM(preset=preset, scale_floor=SCALE_FLOOR, random_state=seed, device=device).get_params())
    _require_enough(accepted)
    root = Base.open(base)
    known = open_members(accepted, root, AuditError)
    new = open_members(candidates, root, AuditError)
    codec = _require_alike([*known, *new])
    shared, left_out = _shared([*known, *new], root)
    table, columns = _table([*known, *new], root, shared, level)
    rows, asked = table[: len(known)], table[len(known) :]
    by_method = {name: _judge(name, rows, asked, settings, false_alarm) for name in METHODS}
    certified = threshold.certifiable(len(rows) if new else len(rows) - 1, false_alarm)
    return VariantReport(
        base=str(base),
        method=method,
        preset=preset,
        level=level,
        false_alarm=false_alarm,
        certified=certified,
        seed=seed,
        codec=codec,
        accepted=tuple(member.name for member in known),
        features=len(columns),
        variants=tuple(
            _verdict(member, i, method, by_method, columns, certified) for i, member in enumerate(new or known)
        ),
        left_out=left_out,
        notes=tuple(_notes(len(known), bool(new), certified, false_alarm)),
    )


def _require_enough(accepted: Paths) -> None:
    if len(accepted) < LEAST_ROWS:
        raise AuditError(
            f"{len(accepted)} accepted variants were given; {LEAST_ROWS} or more are needed to tell what is ordinary",
            hint="look at single ones with `kinfold inspect PACK` or `kinfold diff BASE VARIANT`",
        )


def _require_alike(members: Sequence[Member]) -> str:
    """The codec of all members; none of them may be there twice."""
    codecs: dict[str, str] = {}
    for member in members:
        codecs.setdefault(member.codec, member.name)
    if len(codecs) > 1:
        raise AuditError(
            f"variants are of mixed codecs ({', '.join(f'{k}: `{v}`' for k, v in codecs.items())}); what a codec loses "
            "would look odd, so all must be of one",
            hint="give model directories, or packs made alike",
        )
    seen: dict[str, Member] = {}
    for member in members:
        twin = seen.setdefault(member.fingerprint, member)
        if twin is not member:
            raise AuditError(
                f"`{twin.path}` and `{member.path}` hold the same weights; a variant counts once, as accepted or as "
                "candidate"
            )
    return next(iter(codecs))


def _shared(members: Sequence[Member], base: Base) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Tensors that every member has in the base's shape, and for the others who has not."""
    lacking = {
        name: tuple(member.name for member in members if name not in member.own) for name in base.checkpoint.tensors
    }
    left_out = {name: who for name, who in lacking.items() if who}
    shared = [name for name in lacking if name not in left_out and base.checkpoint.tensors[name].numel]
    if not shared:
        listed = "; ".join(f"`{name}`: {', '.join(who)}" for name, who in list(left_out.items())[:TOLD])
        raise AuditError(f"no tensor of the base is in every variant in the same shape ({listed} ...)")
    return shared, left_out


def _table(members: Sequence[Member], base: Base, shared: list[str], level: str) -> tuple[np.ndarray, list[str]]:
    energies = deltastats.squared_norms(base.checkpoint, shared)
    nbytes = sum(base.checkpoint.tensors[name].nbytes for name in shared)
    rows, columns = [], []
    with progress("measure deltas", nbytes * len(members)) as advance:
        for member in members:
            values, columns = deltastats.row(base, member, tensors=shared, level=level, base_energies=energies)
            rows.append(values)
            advance(nbytes)
    if len(columns) > MANY:
        warnings.warn(f'{len(columns)} statistics a variant are slow to learn; level="layer" has fewer', stacklevel=3)
    return np.array(rows), columns


def _judge(method: str, rows: np.ndarray, asked: np.ndarray, settings: Settings, false_alarm: float) -> Judged:
    """What one method says of the rows asked for, or of the accepted ones where there are none."""

    def fit(tables: Iterable[np.ndarray]) -> Iterator[Fitted]:
        if method == "tccm":
            yield from fit_models(tables, settings)
        else:
            yield from (_PEERS[method].fit(table, SCALE_FLOOR) for table in tables)

    scores, parts = np.empty(len(rows)), np.empty(rows.shape)
    for held, model in threshold.held_out(rows, fit, settings.seed):
        scores[held] = model.scores(rows[held])
        parts[held] = model.attributions(rows[held], signed=True)
    if not len(asked):
        p, limits = threshold.against_the_others(scores, false_alarm)
        return scores, limits, p, parts
    [model] = fit([rows])
    found = model.scores(asked)
    limits = np.full(len(asked), threshold.p_threshold(scores, false_alarm))
    return found, limits, threshold.p_values(scores, found), model.attributions(asked, signed=True)


def _verdict(
    member: Member, i: int, method: str, by_method: Mapping[str, Judged], columns: Sequence[str], certified: bool
) -> VariantVerdict:
    told = {
        name: MethodScore(float(scores[i]), float(limits[i]), float(p[i]))
        for name, (scores, limits, p, _) in by_method.items()
    }
    chosen = told[method]
    verdict: Verdict = "odd" if chosen.score > chosen.threshold else "ordinary" if certified else "undecided"
    parts = _odd_parts(by_method[method][3][i], columns, _EXPECTED[method])
    figures = (chosen.score, chosen.threshold, chosen.p_value)
    return VariantVerdict(member.name, str(member.path), verdict, *figures, parts, told, tuple(member.whole))


def _odd_parts(signed: np.ndarray, columns: Sequence[str], expected: str) -> tuple[OddPart, ...]:
    """Tensors of largest A = sqrt(sum a_j^2), and the statistic of largest a_j in each."""
    places: dict[str, list[int]] = {}
    for j, column in enumerate(columns):
        places.setdefault(column.rpartition(":")[0], []).append(j)
    squares = {name: float(np.square(signed[js]).sum()) for name, js in places.items()}
    total = sum(squares.values()) or 1.0
    found = []
    for name in sorted(squares, key=lambda name: -squares[name])[:TOLD]:
        j = max(places[name], key=lambda j: abs(signed[j]))
        statistic, deviation = columns[j].rpartition(":")[2], float(signed[j])
        side = "above" if deviation >= 0 else "below"
        sentence = f"{name}: {statistic.replace('_', ' ')} {abs(deviation):.3g} sd {side} {expected}"
        found.append(OddPart(name, squares[name] / total, statistic, deviation, sentence))
    return tuple(found)


def _notes(count: int, candidates: bool, certified: bool, false_alarm: float) -> list[str]:
    notes = ["an ordinary verdict does not mean that a variant is safe"]
    if not candidates:
        notes.append(
            "each accepted variant was judged by a model of the others, and p-values take the logarithms of ordinary "
            f"scores for normal; one is odd at {false_alarm:g} / {count} or less, and two alike can hide each other"
        )
    elif not certified:
        notes.append(
            f"{count} accepted variants give no p-value below {1 / (count + 1):.3g}, so a false alarm of "
            f"{false_alarm:g} cannot be certified: odd means above the largest of their own scores"
        )
    if not certified:
        notes.append("variants that are not odd stay undecided: too few are accepted to call one ordinary")
    return notes
