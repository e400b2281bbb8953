"""What is compared: codec settings and budgets, as one word each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kinfold.budget import Budget
from kinfold.codec import create, names
from kinfold.errors import BudgetError, CodecError

BUDGETS = ("1/16", "1/64", "1/256")
# every shipped codec that can take a whole model, at the settings people use; `rtn` only rounds
USUAL = (
    "fold",
    "osd",
    "truncsvd",
    "truncsvd:value_bits=4",
    "dare",
    "dare:value_bits=1",
    "magnitude",
    "bitdelta",
)


@dataclass(frozen=True)
class Setting:
    """A codec with its options.

    Attributes:
        text: `dare`, or with options `dare:value_bits=1`; more options follow after more colons.
        codec: the name.
        options: of the codec.
    """

    text: str
    codec: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, calibrated: bool) -> Setting:
        """Read and check a setting.

        Raises:
            CodecError: no such codec or option, or it needs calibration and there is none.
        """
        name, *pairs = text.split(":")
        options: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise CodecError(
                    f"`{text}` is no codec setting: options are KEY=VALUE, each after a colon",
                    hint="--codecs osd,dare:value_bits=1",
                )
            try:
                options[key] = json.loads(value)
            except ValueError:
                options[key] = value
        if name == "exact":
            if options:
                raise CodecError(f"`exact` has no options, got {', '.join(options)}", hint="--codecs exact")
            return cls(text, name)
        try:
            codec = create(name, options)
        except CodecError as cause:
            raise CodecError(str(cause), hint=cause.hint.replace("--codec ", "--codecs ")) from cause
        if codec.needs_importance and not calibrated:
            raise CodecError(f"`{text}` needs calibration", hint="--calibrate FILE.jsonl")
        return cls(text, name, options)


def read_settings(given: str | Sequence[str] | None, *, calibrated: bool) -> list[Setting]:
    """Settings from a list or from words with commas; the usual ones that are installed for None.

    Raises:
        CodecError: the list is empty, or a setting is at fault.
    """
    if given is None:
        given = [text for text in USUAL if text.split(":")[0] in names()]
    words = _words(given)
    if not words:
        raise CodecError(f"no codec is given; there are exact, {', '.join(names())}", hint="--codecs osd,dare")
    return [Setting.parse(word, calibrated=calibrated) for word in words]


def read_budgets(given: str | Sequence[str | int]) -> list[Budget]:
    """Budgets from a list or from words with commas.

    Raises:
        BudgetError: the list is empty, or a budget is malformed or counts ranks.
    """
    hint = f"--budgets {','.join(BUDGETS)}"
    words = _words(given)
    if not words:
        raise BudgetError("no budget is given; give sizes (`4MB`) or fractions of the reference size", hint=hint)
    try:
        budgets = [Budget.parse(word) for word in words]
    except BudgetError as cause:
        raise BudgetError(str(cause), hint=hint) from cause
    for budget in budgets:
        if budget.kind == "rank":
            raise BudgetError(
                f"`{budget.text}` gives codecs files of different sizes; they are compared at equal bytes", hint=hint
            )
    return budgets


def _words(given: str | Sequence[str | int]) -> list[str]:
    """Words without repeats, in order."""
    parts = given.split(",") if isinstance(given, str) else map(str, given)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))
