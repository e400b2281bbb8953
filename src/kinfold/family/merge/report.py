"""What a merge was made of and what came out, as a report and as the card that lies beside the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MemberRow:
    """A member as it went into the merge.

    Attributes:
        name: as `heads` calls it.
        path: where it lies.
        kind: model, pack or adapter.
        codec: of a pack's matrices; `exact` where nothing was lost.
        fingerprint: names its content.
        weight: the method's own where it chooses them, else the user's.
    """

    name: str
    path: str
    kind: str
    codec: str
    fingerprint: str
    weight: float


@dataclass(frozen=True)
class MergeReport:
    """What `merge` wrote.

    Attributes:
        path: the model directory.
        method: and, for a space, the rule `inner` in it.
        options: all of them, defaults included.
        members: in the order given.
        base: its directory, and `base_fingerprint` what it holds.
        seed: of all random choices.
        tensors: how many were `merged`, are `unchanged` in every member, or `kept` whole because they cannot be merged.
        kept: names of the last.
        left_out: MEMBER/TENSOR, or base/TENSOR, of what the merged model does not have.
        passed_by: matrices that the method's space has no place for; its inner rule merged them as they are.
        heads: whose tensors the kept ones are.
        bytes: of all tensors.
        dominance: the audit's verdict on the members, where it was asked.
    """

    path: str
    method: str
    inner: str | None
    options: dict[str, Any]
    members: list[MemberRow]
    base: str
    base_fingerprint: str
    seed: int
    tensors: dict[str, int]
    kept: list[str]
    left_out: list[str]
    passed_by: list[str]
    heads: str
    bytes: int
    created_by: str
    dominance: Any = None


def merge_card(report: MergeReport) -> str:
    """Markdown with the facts of a `MergeReport`."""
    inner = f" with {report.inner}" if report.inner else ""
    options = ", ".join(f"{key}={value}" for key, value in report.options.items()) or "none"
    lines = [
        f"# Merged by {report.method}{inner}",
        "",
        "One model made by Kinfold of several fine-tunes of one base. It cannot be taken apart again.",
        "",
        "| | |",
        "|---|---|",
        f"| base | `{report.base}`, fingerprint `{report.base_fingerprint}` |",
        f"| options | {options} |",
        f"| seed | {report.seed} |",
        f"| heads | {report.heads} |",
        f"| made by | {report.created_by} |",
        "",
        "| member | weight | kind | fingerprint |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{row.name}` | {row.weight:g} | {row.kind} ({row.codec}) | `{row.fingerprint}` |" for row in report.members
    ]
    for title, found in (("not merged, kept whole", report.kept), ("left out", report.left_out)):
        if found:
            lines += ["", f"{title}: {', '.join(f'`{name}`' for name in found)}"]
    return "\n".join(lines) + "\n"
