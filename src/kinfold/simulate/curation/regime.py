"""Where a curation loop will end: which states no other can invade, and whether the paper's theorem says so too.

Theorem 4 of arXiv 2511.12804 has the owner decide where the two disagree. It does not hold: the composed choice is
nearly utilitarian, and the larger pool weighs more. That a single state which nothing invades is the limit was measured
on thousands of random worlds and not proved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kinfold.simulate.curation.checks import (
    checked_choice,
    checked_pool,
    checked_positive,
    checked_rewards,
    checked_share,
    checked_support,
    cooled,
)
from kinfold.simulate.curation.weights import log_growth

Schedule = Literal["owner-first", "public-first", "owner-only", "public-only", "mixture"]
SCHEDULES = ("owner-first", "public-first", "owner-only", "public-only", "mixture")
DEPENDS: Literal["depends on start and order"] = "depends on start and order"
RUN_IT: Literal["run it"] = "run it"


@dataclass(frozen=True)
class TheoremFour:
    """What the paper's Theorem 4 says of these rewards.

    Attributes:
        predicts: the public's optimum within the owner's, as places of states.
        agrees: whether the prediction is the same set; None for schedules the theorem is not about.
    """

    predicts: tuple[int, ...]
    agrees: bool | None


@dataclass(frozen=True)
class RegimeReport:
    """What is known of a loop before it is run. States are places in the rewards, from 0.

    Attributes:
        regime: perfect (equal optima), partial (they overlap) or disjoint.
        owner_optimum, public_optimum: the states of the highest reward of each.
        stable: sets of states that no other invades; within a set the ratios of the start are kept.
        rates: nats a round at which the slowest other state falls behind each stable set; None where nothing is left.
        prediction: the stable set if there is one; "depends on start and order" if there are several; "run it" for a
            mixture of parties that disagree, where states may invade each other and live side by side.
        owner_safe_gap: the owner's optimum is stable whatever the public wants, once its lead is above this, in
            log-odds; None for a mixture.
        utilitarian: where the loop ends as gaps become small.
        theorem4: what the paper says.
    """

    regime: Literal["perfect", "partial", "disjoint"]
    owner_optimum: tuple[int, ...]
    public_optimum: tuple[int, ...]
    stable: tuple[tuple[int, ...], ...]
    rates: tuple[float | None, ...]
    prediction: tuple[int, ...] | Literal["depends on start and order", "run it"]
    owner_safe_gap: float | None
    utilitarian: tuple[int, ...]
    theorem4: TheoremFour


@dataclass(frozen=True)
class Rules:
    """Log-odds (n,) of both parties, and who chooses how: a pool of 1 for a party that never does.

    `mixture` is the share of items that the owner curates; None where both choose one after the other.
    """

    owner: NDArray
    public: NDArray
    owner_pool: float
    public_pool: float
    mixture: float | None

    def growth(self, rare: NDArray | int, resident: NDArray | int) -> NDArray:
        """log of the factor a round by which rare states grow in a population of the resident ones."""
        own = log_growth(self.owner[rare] - self.owner[resident], self.owner_pool)
        other = log_growth(self.public[rare] - self.public[resident], self.public_pool)
        if self.mixture is None:
            return own + other
        return np.log(self.mixture * np.exp(own) + (1 - self.mixture) * np.exp(other))

    def slopes(self) -> tuple[float, float]:
        """What a small lead counts for, in the owner's rewards and in the public's."""
        shares = (1.0, 1.0) if self.mixture is None else (self.mixture, 1 - self.mixture)
        return shares[0] * (1 - 1 / self.owner_pool), shares[1] * (1 - 1 / self.public_pool)

    def coordinates(self) -> NDArray:
        """(n, 1 or 2): the loop cannot tell states apart whose coordinates are equal; more of one is never worse."""
        if self.mixture is None and min(self.owner_pool, self.public_pool) == math.inf:
            return (self.owner + self.public)[:, None]
        rewards = zip((self.owner, self.public), self.slopes(), strict=True)
        found = [reward for reward, slope in rewards if slope > 0]
        return np.stack(found or [np.zeros_like(self.owner)], axis=1)


def rules(owner: NDArray, public: NDArray, pools: tuple[float, float], schedule: str, mixture: float) -> Rules:
    """The rules of a schedule; arguments are as checked."""
    own, other = pools[0] if schedule != "public-only" else 1, pools[1] if schedule != "owner-only" else 1
    return Rules(owner, public, own, other, mixture if schedule == "mixture" else None)


def curation_regime(
    owner: ArrayLike,
    public: ArrayLike,
    *,
    owner_pool: float = 8,
    public_pool: float = 8,
    schedule: Schedule = "owner-first",
    mixture: float = 0.5,
    support: ArrayLike | None = None,
    tolerance: float = 1e-9,
) -> RegimeReport:
    """Say where a curation loop will end, without running it; see arXiv 2511.12804 for the regimes' names.

    Args:
        owner, public: rewards in log-odds, (n,), n >= 2.
        owner_pool, public_pool: candidates K and M of which one is chosen: 1, 2, ... or infinity.
        schedule: who chooses, and who first.
        mixture: share of items that the owner curates, of the schedule "mixture" only.
        support: booleans (n,): the states that have any mass at the start; all where None.
        tolerance: rewards this close count as equal, and a state that falls no faster, in nats a round, as staying.

    Raises:
        SimulationError: an argument is out of its range.
    """
    how, places = _checked_rules(owner, public, (owner_pool, public_pool), schedule, mixture, support)
    checked_positive("tolerance", tolerance)
    own, other = how.owner, how.public
    best_own, best_other = own >= own.max() - tolerance, other >= other.max() - tolerance
    both = best_own & best_other
    regime = "perfect" if (best_own == best_other).all() else "partial" if both.any() else "disjoint"
    stable = _stable(how, tolerance)
    prediction: tuple[int, ...] | Literal["depends on start and order", "run it"] = DEPENDS
    if schedule == "mixture" and not both.any() and how.coordinates().shape[1] == 2:
        prediction = RUN_IT
    elif len(stable) == 1:
        prediction = _named(stable[0], places)
    predicts = _named(best_own & (other >= other[best_own].max() - tolerance), places)
    utility = how.slopes()[0] * own + how.slopes()[1] * other
    return RegimeReport(
        regime=regime,
        owner_optimum=_named(best_own, places),
        public_optimum=_named(best_other, places),
        stable=tuple(_named(group, places) for group in stable),
        rates=tuple(_slowest(how, group) for group in stable),
        prediction=prediction,
        owner_safe_gap=_safe_gap(how),
        utilitarian=_named(utility >= utility.max() - tolerance, places),
        theorem4=TheoremFour(predicts, prediction == predicts if schedule.endswith("-first") else None),
    )


def invasion(
    owner: ArrayLike,
    public: ArrayLike,
    *,
    owner_pool: float = 8,
    public_pool: float = 8,
    schedule: Schedule = "owner-first",
    mixture: float = 0.5,
) -> NDArray:
    """float64 (n, n): at [b, a] the log growth a round of a rare state b in a population of pure a; 0 on the diagonal.

    Arguments and errors are those of `curation_regime`.
    """
    how, every = _checked_rules(owner, public, (owner_pool, public_pool), schedule, mixture, None)
    grown = how.growth(every[:, None], every[None, :])
    np.fill_diagonal(grown, 0.0)  # it is 0 up to rounding only, which would look like an invasion
    return grown


def _checked_rules(
    owner: ArrayLike,
    public: ArrayLike,
    pools: tuple[float, float],
    schedule: str,
    mixture: float,
    support: ArrayLike | None,
) -> tuple[Rules, NDArray]:
    """The rules among the states that have any mass, and the places of these."""
    found = checked_rewards(owner, public)
    places = checked_support(support, len(found[0]))
    own, other = (cooled(n, r, 1.0)[places] for n, r in zip(("owner", "public"), found, strict=True))
    checked = checked_pool("owner_pool", pools[0]), checked_pool("public_pool", pools[1])
    checked_choice("schedule", schedule, SCHEDULES)
    return rules(own, other, checked, schedule, checked_share("mixture", mixture)), places


def _stable(how: Rules, tolerance: float) -> list[NDArray]:
    """Masks (n,) of the sets of alike states that no other state invades.

    Of two states the one that is no worse to both parties invades all that the other does, so that only the best
    compromises need to be asked: memory is that of n numbers, not n^2.
    """
    places = how.coordinates()
    kept: list[int] = []
    for i in _front(places):  # ordered in both coordinates, so that states that are alike are neighbours
        if not kept or np.abs(places[i] - places[kept[-1]]).max() > tolerance:
            kept.append(i)
    found = []
    for i in kept:
        others = np.array([j for j in kept if j != i], dtype=int)
        if not others.size or how.growth(others, i).max() < -tolerance:  # 0 up to rounding is no defence
            found.append(np.abs(places - places[i]).max(axis=1) <= tolerance)
    return found


def _front(places: NDArray) -> list[int]:
    """States that no other is strictly better than in one coordinate and no worse in the other."""
    order = np.lexsort(tuple(-column for column in reversed(places.T)))  # best in the first, then in the last
    best, found = -math.inf, []
    for i in order.tolist():
        if places[i, -1] > best:
            best = places[i, -1]
            found.append(i)
    return found


def _slowest(how: Rules, group: NDArray) -> float | None:
    others = np.flatnonzero(~group)
    if not others.size:
        return None
    return float(-how.growth(others, int(np.argmax(group))).max())


def _safe_gap(how: Rules) -> float | None:
    own, other = how.owner_pool, how.public_pool
    if how.mixture is not None:
        return None
    if own == 1 or other == math.inf:
        return math.inf
    return math.log(other) if own == math.inf else math.log((other * own - 1) / (own - 1))


def _named(mask: NDArray, places: NDArray) -> tuple[int, ...]:
    return tuple(places[mask].tolist())
