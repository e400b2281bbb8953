"""What a merge method is, and where methods are found.

A method is one function with a decorator; the keyword-only parameters of the function, their types and defaults are
its options. There are three kinds. A *rule* (`merge_method`) turns the members' deltas of one tensor into one delta.
A *Gram rule* (`gram_method`) turns the inner products of the whole deltas into one weight a member. A *space*
(`space_method`) turns the deltas of one tensor into coordinates, lets a rule merge those, and goes back.

Methods of other packages are found by the entry point `kinfold.merges`: NAME = "package.module:function".
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from kinfold.errors import MergeError
from kinfold.pack.member import Pair

F = TypeVar("F", bound=Callable[..., Any])
Weights = Sequence[float]
Options = Mapping[str, Any]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Share | list[Share]  # one for all members, or one a member


@dataclass(frozen=True)
class Site:
    """What a method may know of the tensor besides deltas and weights; a method that has a parameter `site` gets it.

    Attributes:
        name: of the tensor, in the base.
        seeds: 64-bit seeds, one a member, of this tensor.
        base: reads the base's values, float32.
        factors: for each member A (n, k) and C (d, k), float64, whose product A C^T is its delta; None where only
            the dense delta is known.
        survey: what the method's `survey` found in its passes over the whole model.
    """

    name: str = ""
    seeds: tuple[int, ...] = ()
    base: Callable[[], torch.Tensor] = lambda: torch.zeros(())
    factors: Callable[[], list[Pair | None]] = list
    survey: Any = None


HERE = Site()  # for calls on a tensor that belongs to no model


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes:
        name: as `--method` takes it.
        kind: how `function` is called; see `merge_method`, `gram_method` and `space_method`.
        function: the user's own, undecorated.
        check: given weights and options before anything is read; raises MergeError.
        survey: passes over the model before the merge; see `merge_method`.
        inners: of a space, the rules it may use, the first by default, with the options it fixes for each.
    """

    name: str
    kind: Literal["rule", "gram", "space"]
    function: Callable[..., Any]
    check: Callable[[Weights, Options], None] | None = None
    survey: Callable[..., Any] | None = None
    inners: Mapping[str, Options] = field(default_factory=dict)

    @cached_property
    def schema(self) -> type[BaseModel]:
        """Options as a pydantic model: the keyword-only parameters of the function but `site`."""
        hints = get_type_hints(self.function, include_extras=True)
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY or name == "site":
                continue
            if name not in hints or parameter.default is parameter.empty:
                raise MergeError(f"option `{name}` of the method `{self.name}` needs a type and a default")
            fields[name] = (hints[name], parameter.default)
        config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
        return create_model(f"{self.name} options", __config__=config, **fields)

    @property
    def wants_site(self) -> bool:
        return "site" in inspect.signature(self.function).parameters

    def options(self, given: Options) -> dict[str, Any]:
        """All options, the given ones checked.

        Raises:
            MergeError: an unknown option, or a value it does not allow; the options are listed.
        """
        try:
            return self.schema(**given).model_dump()
        except ValidationError as cause:
            first = cause.errors()[0]
            key = str(first["loc"][0])
            what = "there is no such option" if first["type"] == "extra_forbidden" else first["msg"]
            raise MergeError(
                f"`{self.name}` does not take {key}={given[key]!r}: {what}; its options are {self.described()}"
            ) from cause

    def described(self) -> str:
        """Options with their defaults: `density (0.2), scale (1.0)`."""
        fields = self.schema.model_fields.items()
        return ", ".join(f"{name} ({info.default})" for name, info in fields) or "none"


BUILTIN = {
    "linear": "kinfold.family.merge.linear",
    "task_arithmetic": "kinfold.family.merge.linear",
    "ties": "kinfold.family.merge.ties",
    "dare_linear": "kinfold.family.merge.drop",
    "dare_ties": "kinfold.family.merge.drop",
    "della": "kinfold.family.merge.drop",
    "slerp": "kinfold.family.merge.slerp",
    "knots": "kinfold.family.merge.knots",
    "core_space": "kinfold.family.merge.core_space",
    **dict.fromkeys(
        ("clip_mean", "geomedian", "centered_clip", "multikrum", "median", "trimmed_mean"),
        "kinfold.family.merge.robust",
    ),
}
_REGISTERED: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    *,
    check: Callable[[Weights, Options], None] | None = None,
    survey: Callable[..., Any] | None = None,
) -> Callable[[F], F]:
    """Register `function(deltas, weights, *, OPTIONS) -> delta`, the rule for one tensor.

    `deltas` are float32 tensors of one shape, one a member in order, and the function's own: it may write into them.
    `weights` are floats, none of them 0. The result has the same shape and is added to the base.

    Args:
        name: as `--method` takes it.
        check: `check(weights, options)` raises MergeError before anything is read.
        survey: `survey(passes, members, **options)` is called before the merge; each call of `passes()` streams the
            lists of deltas of all tensors anew. What it returns is `site.survey`.

    Raises:
        MergeError: another method has that name.
    """
    return _register(name, "rule", check=check, survey=survey)


def gram_method(name: str, *, check: Callable[[Weights, Options], None] | None = None) -> Callable[[F], F]:
    """Register `function(gram, shares, *, OPTIONS) -> weights`; the merge is base + sum of weights times deltas.

    `gram` is float64 (N, N), the inner products of the members' whole deltas; `shares` float64 (N), the user's
    weights over their sum; the result (N).

    Raises:
        MergeError: another method has that name.
    """
    return _register(name, "gram", check=check)


def space_method(
    name: str, *, inners: Mapping[str, Options], check: Callable[[Weights, Options], None] | None = None
) -> Callable[[F], F]:
    """Register `function(deltas, *, OPTIONS) -> (coordinates, back)`: a rule merges the coordinates, then `back`
    turns what it gives into the delta. None instead of the two leaves the tensor to the rule alone.

    Args:
        name: as `--method` takes it.
        inners: rules that `--inner` may choose, the first by default, with the options that are fixed for each.
        check: as of `merge_method`.

    Raises:
        MergeError: another method has that name.
    """
    return _register(name, "space", check=check, inners=inners)


def _register(name: str, kind: Literal["rule", "gram", "space"], **details: Any) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        there = _REGISTERED.get(name)
        taken = there is not None and _origin(there.function) != _origin(function)
        if taken or (name in BUILTIN and function.__module__ != BUILTIN[name]):
            raise MergeError(f"there is already a merge method called `{name}`; give yours another name")
        _REGISTERED[name] = MergeMethod(name, kind, function, **details)
        return function

    return decorate


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__  # a cell of a notebook may run twice


def names() -> list[str]:
    """Names of all methods: those shipped here, those registered since, those of the entry point `kinfold.merges`."""
    return sorted(BUILTIN.keys() | _REGISTERED.keys() | {point.name for point in entry_points(group="kinfold.merges")})


def find(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        MergeError: no such method, the nearest is named; or an entry point that leads to none.
    """
    name = name.replace("-", "_")
    if name in BUILTIN:
        import_module(BUILTIN[name])
    for point in [] if name in _REGISTERED else entry_points(group="kinfold.merges", name=name):
        point.load()
        if name not in _REGISTERED:
            raise MergeError(f"`{point.value}` registers no merge method called `{name}`; it needs @merge_method")
    if name not in _REGISTERED:
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"--method {near[0]}" if near else ""
        raise MergeError(f"no merge method is called `{name}`; there are {', '.join(names())}", hint=hint)
    return _REGISTERED[name]


def per_member(value: float | Sequence[float], count: int, option: str) -> list[float]:
    """One value a member from one for all, or from as many as there are members.

    Raises:
        MergeError: another number of values.
    """
    values = [float(one) for one in (value if isinstance(value, Sequence) else [value] * count)]
    if len(values) != count:
        raise MergeError(f"`{option}` has {len(values)} values for {count} members; give one for all, or one a member")
    return values
