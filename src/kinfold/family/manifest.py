"""What a family file says of itself; `docs/FORMAT.md` is the normative text."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kinfold.errors import FamilyError
from kinfold.pack.manifest import Count, Hash, Name, Source, Stored

_NAME = r"^[^#/\\\x00]+$"
_LONGEST_NAME = 255
MemberName = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME, pattern=_NAME)]


def require_name(name: str) -> None:
    """Refuse what no member can be called.

    Raises:
        FamilyError: the name is empty, too long, or holds one of `#`, `/` and `\\`.
    """
    if len(name) > _LONGEST_NAME or not re.fullmatch(_NAME, name):
        raise FamilyError(
            f"a member cannot be called {name!r}: names have 1 to {_LONGEST_NAME} characters without `#`, `/` and `\\`",
            hint="name it: fold({'name': path}), or rename its folder",
        )


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shared(_Model):
    """The shared section of one layer.

    Attributes:
        tensor: the base's name of it.
        codec: `rmm` or `jd`.
        shape: of the tensor.
        bytes: of the section.
        params: what the decoder needs.
    """

    tensor: Name
    codec: Name
    shape: list[Count] = Field(min_length=1, max_length=64)
    bytes: Count
    params: dict[str, Any]


class FamilyManifest(Stored):
    """Everything that is common to all members, and their names."""

    created_by: str
    method: Name
    budget: str | None = None
    seed: int = 0
    base: Source
    members: list[MemberName] = Field(min_length=1)
    shared: list[Shared] = Field(default_factory=list)
    entries: dict[Name, Hash] = Field(default_factory=dict)

    @field_validator("members")
    @classmethod
    def _once(cls, members: list[str]) -> list[str]:
        if len(set(members)) != len(members):
            raise ValueError("a member is listed twice")
        return members

    def _check(self) -> None:
        tensors = [shared.tensor for shared in self.shared]
        if len(set(tensors)) != len(tensors):
            raise ValueError("a layer is listed twice")
