"""Before a family or a merge is built: does one member outweigh or cancel the rest?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kinfold.audit.dominance import DominanceReport, judge, member_grams
from kinfold.errors import AuditError, DominanceError, KinfoldError
from kinfold.pack.member import Member

Watch = Literal["warn", "refuse", "off"]


def watch(
    members: Sequence[Member],
    mode: str,
    error: type[KinfoldError],
    weights: Sequence[float] | None = None,
) -> DominanceReport | None:
    """What the audit for dominance says of the members; None where it is off or there is one member only.

    Args:
        members: of one base.
        mode: `warn`, `refuse` or `off`.
        error: raised for any other mode.
        weights: what a mean weighs them by.

    Raises:
        DominanceError: `refuse`, and a member is flagged.
        AuditError: `refuse`, and they cannot be compared.
    """
    require_mode(mode, error)
    if mode == "off" or len(members) < 2:
        return None
    try:
        grams = member_grams(members)
    except AuditError:  # tensors that do not fit each other: what builds on them says it better
        if mode == "refuse":
            raise
        return None
    report = judge(grams.total, grams.names, weights, tensors=grams.tensors, notes=grams.notes)
    if report.flagged and mode == "refuse":
        paths = " ".join(str(member.path) for member in members)
        raise DominanceError(
            f"refused: {report.sentence}",
            hint=f"kinfold audit dominance {paths} --base {members[0].base.checkpoint.directory}; leave that member "
            "out, merge with --method clip_mean, or pass --dominance warn",
        )
    return report


def require_mode(mode: str, error: type[KinfoldError]) -> None:
    """Raise `error` for what is no way to watch."""
    if mode not in ("warn", "refuse", "off"):
        raise error(f"dominance is warn, refuse or off, got `{mode}`")
