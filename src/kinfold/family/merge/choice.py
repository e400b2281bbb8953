"""A method with everything chosen: its options, the rule inside it, and how they work on one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kinfold.codec.threads import single_threaded
from kinfold.errors import MergeError
from kinfold.family.merge.linear import weighted_sum
from kinfold.family.merge.registry import MergeMethod, Site, Weights, find

Back = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Choice:
    """A method and its checked options; of a space, also the rule that merges the coordinates."""

    method: MergeMethod
    options: Mapping[str, Any]
    inner: Choice | None = None

    @property
    def rule(self) -> Choice:
        """What merges: the inner rule of a space, else the method itself."""
        return self.inner or self

    @property
    def all_options(self) -> dict[str, Any]:
        return {**self.rule.options, **self.options}

    def check(self, weights: Weights) -> None:
        """Refuse weights and options that do not go together; nothing has been read yet.

        Raises:
            MergeError: as the methods' own checks say.
        """
        for choice in {id(self): self, id(self.rule): self.rule}.values():
            if choice.method.check is not None:
                choice.method.check(weights, choice.options)

    def coordinates(self, deltas: list[torch.Tensor], site: Site) -> tuple[list[torch.Tensor], Back | None]:
        """What the rule sees of one tensor, and the way back from its result; None where the space passes it by."""
        if self.inner is None:
            return deltas, lambda merged: merged
        with single_threaded():  # eigenvectors depend on the number of threads
            return self.method.function(deltas, **self._arguments(site)) or (deltas, None)

    def merge(self, deltas: list[torch.Tensor], weights: Weights, site: Site) -> tuple[torch.Tensor, bool]:
        """The merged delta of one tensor, and False where a space passed it by.

        `deltas` is emptied, so that no more is held on the way back than it needs.
        """
        coordinates, back = self.coordinates(deltas, site)
        rule = self.rule
        if rule.method.kind == "gram":  # the weights are the method's own by now
            merged = weighted_sum(coordinates, weights)
        else:
            merged = rule.method.function(coordinates, weights, **rule._arguments(site))
        del coordinates
        deltas.clear()
        if back is None:
            return merged, False
        with single_threaded():
            return back(merged), True

    def _arguments(self, site: Site) -> dict[str, Any]:
        return {**self.options, "site": site} if self.method.wants_site else dict(self.options)


def choose(name: str, inner: str | None, given: Mapping[str, Any]) -> Choice:
    """A method with its options checked; what is no option of a space goes to the rule inside it.

    Raises:
        MergeError: unknown method, inner rule or option, or a value that is not allowed.
    """
    method = find(name)
    if method.kind != "space":
        if inner is not None:
            raise MergeError(f"`{name}` has no inner method, --inner {inner} was given")
        return Choice(method, method.options(given))
    inner = inner or next(iter(method.inners))
    if inner not in method.inners:
        raise MergeError(f"inner={inner!r} is none that `{name}` can use: it takes {', '.join(method.inners)}")
    rule, fixed = find(inner), method.inners[inner]
    own, known = method.schema.model_fields, rule.schema.model_fields
    for key, value in given.items():
        if key not in own and (key not in known or key in fixed):
            free = ", ".join(f"{k} ({known[k].default})" for k in known if k not in fixed and k not in own)
            raise MergeError(
                f"`{name}` does not take {key}={value!r}: there is no such option; its options are "
                f"{method.described()}, those of its inner `{inner}` {free}"
            )
    rest = {key: value for key, value in given.items() if key not in own}
    options = method.options({key: value for key, value in given.items() if key in own})
    return Choice(method, options, Choice(rule, rule.options({**rest, **fixed})))
