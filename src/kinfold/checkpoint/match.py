"""Which tensor of the variant belongs to which tensor of the base."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from kinfold.checkpoint.header import TensorInfo
from kinfold.checkpoint.reader import Checkpoint
from kinfold.errors import CheckpointError

ALIAS_BYTES = 64  # below this an alias costs more than the tensor
Status = Literal["equal", "changed", "resized", "new", "alias"]


@dataclass(frozen=True)
class Pair:
    """A tensor of the variant and its counterpart.

    Attributes:
        name: in the variant.
        status: `equal` to the base byte for byte; `changed`; `resized` (other number of rows); `new` (no
            counterpart it can be subtracted from); `alias` (equal to another tensor of the variant).
        base: the counterpart's name in the base; for an alias, the other tensor of the variant.
        rows: leading rows that both sides have.
    """

    name: str
    status: Status
    base: str | None = None
    rows: int = 0


@dataclass(frozen=True)
class Match:
    """All tensors of the variant in order, and the base's names that the variant lacks."""

    pairs: list[Pair]
    absent: list[str]
    prefix: tuple[str, str] = ("", "")
    unlike: list[str] = field(default_factory=list)  # new because the counterpart's shape does not fit

    def count(self, status: Status) -> int:
        return sum(pair.status == status for pair in self.pairs)


def match(
    base: Checkpoint,
    variant: Checkpoint,
    base_digest: Mapping[str, str],
    variant_digest: Mapping[str, str],
    *,
    strict: bool = True,
) -> Match:
    """Pair the tensors of two checkpoints by name, digest and shape.

    A prefix that one side carries and the other lacks (`bert.` after fine-tuning with a task head) is
    found and reported in `Match.prefix` as (variant's, base's). `strict` refuses strangers.

    Raises:
        CheckpointError: less than half of the variant's bytes have a counterpart of the same shape; the
            two are different architectures.
    """
    prefix = common_prefix(
        variant.tensors, base.tensors, lambda own, other: variant.tensors[own].shape == base.tensors[other].shape
    )
    pairs: list[Pair] = []
    unlike: list[str] = []
    first_with: dict[tuple[str, str, tuple[int, ...]], str] = {}
    for name, info in variant.tensors.items():
        other = renamed(name, prefix)
        there = base.tensors.get(other) if other is not None else None
        identity = (variant_digest[name], info.dtype, info.shape)
        twin = first_with.setdefault(identity, name)
        if there is not None and (base_digest[there.name], there.dtype, there.shape) == identity:
            pairs.append(Pair(name, "equal", other, _rows(info.shape)))
        elif twin != name and info.nbytes > ALIAS_BYTES:
            pairs.append(Pair(name, "alias", twin))
        elif there is not None and _comparable(there, info):
            status: Status = "changed" if there.shape == info.shape else "resized"
            pairs.append(Pair(name, status, other, min(_rows(info.shape), _rows(there.shape))))
        else:
            pairs.append(Pair(name, "new"))
            if there is not None:
                unlike.append(name)
    met = {renamed(name, prefix) for name in variant.tensors}
    result = Match(pairs, [name for name in base.tensors if name not in met], prefix, unlike)
    if strict:
        _refuse_strangers(base, variant, result)
    return result


def _comparable(a: TensorInfo, b: TensorInfo) -> bool:
    """Same shape, or a matrix with more or fewer rows; and a difference of the two has a meaning."""
    same_columns = len(a.shape) == len(b.shape) > 1 and a.shape[1:] == b.shape[1:]
    floats = a.torch_dtype.is_floating_point and b.torch_dtype.is_floating_point
    return (a.shape == b.shape or same_columns) and (floats or a.dtype == b.dtype)


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def renamed(name: str, prefix: tuple[str, str]) -> str | None:
    """The base's name for a name of the variant; None where the variant's prefix is not on it."""
    own, other = prefix
    return other + name[len(own) :] if name.startswith(own) else None


def common_prefix(
    names: Collection[str], base_names: Collection[str], met: Callable[[str, str], bool]
) -> tuple[str, str]:
    """The pair of prefixes (the variant's, the base's) under which most names meet; `met` judges two of them."""

    def meetings(prefix: tuple[str, str]) -> int:
        renamed_names = ((name, renamed(name, prefix)) for name in names)
        return sum(met(name, other) for name, other in renamed_names if other and other in base_names)

    heads = sorted({name.split(".")[0] + "." for name in names if "." in name})
    base_heads = sorted({name.split(".")[0] + "." for name in base_names if "." in name})
    candidates = [("", ""), *((head, "") for head in heads), *(("", head) for head in base_heads)]
    return max(candidates, key=meetings)


def _refuse_strangers(base: Checkpoint, variant: Checkpoint, result: Match) -> None:
    paired = sum(
        variant.tensors[pair.name].nbytes for pair in result.pairs if pair.status in ("equal", "changed", "resized")
    )
    counted = sum(variant.tensors[pair.name].nbytes for pair in result.pairs if pair.status != "alias")
    if 2 * paired >= counted:
        return
    kinds = [(c.config.get("architectures") or [c.config.get("model_type", "?")])[0] for c in (base, variant)]
    example = result.unlike[0] if result.unlike else next(p.name for p in result.pairs if p.status == "new")
    info = variant.tensors[example]
    there = base.tensors[example].shape if example in base.tensors else "absent"
    raise CheckpointError(
        f"`{variant.directory}` ({kinds[1]}) is no fine-tune of `{base.directory}` ({kinds[0]}): only "
        f"{paired} of {counted} bytes have a counterpart; `{example}` is {list(info.shape)} in the variant and "
        f"{list(there) if not isinstance(there, str) else there} in the base",
        hint=f"kinfold diff {base.directory} {variant.directory}",
    )
