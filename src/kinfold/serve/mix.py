"""One forward pass for rows of different variants: the base's output, and on each row its variant's delta.

Many low-rank deltas in one batch: Sheng et al. (2023), S-LoRA, arXiv 2311.03285; here the active variants' factors
are laid side by side, so that a module takes two small products however many variants there are.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from kinfold.errors import ServeError
from kinfold.serve.delta import Change, Dense, Kind, LowRank, Whole, kind_of

KEPT = 4  # blends whose stacked factors are kept


class Changes(Protocol):
    """What mixing needs of a variant: its changes by module and parameter; the object itself is its identity."""

    @property
    def changes(self) -> Mapping[str, Mapping[str, Change]]: ...


@dataclass
class _Site:
    """What several variants do to one module; variants by their place in the blend.

    Attributes:
        ranks: of each variant's product, 0 where it has none.
        inner, outer: all products side by side, (in, sum of ranks) and (sum of ranks, out); None where there are none.
        dense: deltas of the weight. biases: deltas of the bias. twins: the module with a variant's own values.
    """

    ranks: tuple[int, ...]
    inner: torch.Tensor | None = None
    outer: torch.Tensor | None = None
    dense: dict[int, torch.Tensor] = field(default_factory=dict)
    biases: dict[int, torch.Tensor] = field(default_factory=dict)
    twins: dict[int, nn.Module] = field(default_factory=dict)


class Blend:
    """The variants of a batch, their factors stacked once for all steps with these variants."""

    def __init__(self, variants: Sequence[Changes], modules: Mapping[str, nn.Module]) -> None:
        self.variants = tuple(variants)
        self._modules = modules
        self._sites: dict[str, _Site | None] = {}

    def site(self, name: str) -> _Site | None:
        if name not in self._sites:
            self._sites[name] = self._build(name)
        return self._sites[name]

    def _build(self, name: str) -> _Site | None:
        found = [variant.changes.get(name, {}) for variant in self.variants]
        if not any(found):
            return None
        products = [change.get("weight") for change in found]
        site = _Site(tuple(p.rank if isinstance(p, LowRank) else 0 for p in products))
        pairs = [p for p in products if isinstance(p, LowRank)]
        if pairs:
            one = len(pairs) == 1
            site.inner = pairs[0].inner if one else torch.cat([p.inner for p in pairs], 1)
            site.outer = pairs[0].outer if one else torch.cat([p.outer for p in pairs], 0)
        for place, change in enumerate(found):
            values = {key: part.value for key, part in change.items() if isinstance(part, Whole)}
            if values:
                site.twins[place] = _twin(self._modules[name], values)
            for key, part in change.items():
                if isinstance(part, Dense):
                    (site.biases if key == "bias" else site.dense)[place] = part.delta
        return site


def _twin(module: nn.Module, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """A leaf module that shares everything with `module` but these parameters, and has no hooks."""
    twin = copy.copy(module)
    own = {name: nn.Parameter(value, requires_grad=False) for name, value in values.items()}
    twin.__dict__["_parameters"] = {**module._parameters, **own}
    twin.__dict__["_forward_hooks"] = OrderedDict()
    twin.__dict__["_forward_hooks_with_kwargs"] = OrderedDict()
    return twin


class Plan:
    """Which variant each row of a batch has.

    Args:
        blend: the variants.
        rows: place in the blend for each row, -1 for the base.
        tokens: of each row in this pass, padding included.
        device: of the model.
    """

    def __init__(self, blend: Blend, rows: Sequence[int], tokens: int, device: torch.device) -> None:
        self.blend, self.rows, self.tokens = blend, tuple(rows), tokens
        self.only = rows[0] if len(set(rows)) == 1 else None  # all rows are of this variant
        self._device = device
        self._index = torch.tensor(self.rows, device=device)
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}
        self._picked: dict[tuple[int, bool], torch.Tensor] = {}

    def flat(self, tensor: torch.Tensor, name: str) -> bool:
        """Whether the first dimension of a module's input counts tokens and not rows.

        Raises:
            ServeError: neither of the two.
        """
        count = tensor.shape[0]
        if count in (1, len(self.rows)):  # 1: the same for all rows, such as position ids
            return False
        if count == len(self.rows) * self.tokens:
            return True
        raise ServeError(
            f"`{name}` sees {count} inputs for {len(self.rows)} rows of {self.tokens} tokens; whose are they",
            hint="kinfold restore writes the variant as a model directory, which any server of its own can serve",
        )

    def mask(self, ranks: tuple[int, ...], flat: bool) -> torch.Tensor | None:
        """True where a row must not feel a rank: (rows or tokens, sum of ranks); None where all rows have all."""
        if self.only is not None and sum(ranks) == ranks[self.only]:
            return None
        key = (ranks, flat)
        if key not in self._masks:
            owner = torch.tensor([place for place, rank in enumerate(ranks) for _ in range(rank)], device=self._device)
            self._masks[key] = self._spread(flat)[:, None] != owner
        return self._masks[key]

    def picked(self, place: int, flat: bool) -> torch.Tensor:
        """Indices of the rows or tokens of one variant, int64; empty where it has none."""
        key = (place, flat)
        if key not in self._picked:
            self._picked[key] = (self._spread(flat) == place).nonzero()[:, 0]
        return self._picked[key]

    def _spread(self, flat: bool) -> torch.Tensor:
        return self._index.repeat_interleave(self.tokens) if flat else self._index


class Mixer:
    """Hooks on every module with parameters; they do nothing until rows are named by `rows`.

    Each thread names its own rows, so that a probe may run beside the batch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = {}
        self._device = next(model.parameters()).device
        self._local = threading.local()
        self._blends: list[Blend] = []  # the latest first
        self._lock = threading.Lock()
        for name, module in model.named_modules():
            kind = kind_of(module)
            if kind != "parent" and module._parameters:
                self.modules[name] = module
                module.register_forward_hook(self._hook(name, kind), with_kwargs=True)

    @contextmanager
    def rows(self, variants: Sequence[Changes | None], tokens: int) -> Iterator[None]:
        """Inside the block row i of a batch has `variants[i]`, None for the base, and `tokens` tokens."""
        active = {id(variant): variant for variant in variants if variant is not None and variant.changes}
        if active:
            blend = self._blend(list(active.values()))
            places = {id(variant): place for place, variant in enumerate(blend.variants)}
            rows = [places.get(id(variant), -1) for variant in variants]
            self._local.plan = Plan(blend, rows, tokens, self._device)
        try:
            yield
        finally:
            self._local.plan = None

    def forget(self, variant: Changes) -> None:
        """Let go of the stacked factors of a variant that is no longer resident."""
        with self._lock:
            self._blends = [blend for blend in self._blends if all(v is not variant for v in blend.variants)]

    def _blend(self, active: list[Changes]) -> Blend:
        """A blend of these variants: a kept one may have as many more, whose ranks are then masked."""
        wanted = {id(variant) for variant in active}
        with self._lock:
            for blend in self._blends:
                if len(blend.variants) <= 2 * len(active) and wanted <= {id(variant) for variant in blend.variants}:
                    break
            else:
                blend = Blend(active, self.modules)
            self._blends = [blend, *(other for other in self._blends if other is not blend)][:KEPT]
            return blend

    def _hook(self, name: str, kind: Kind) -> Callable[..., torch.Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> torch.Tensor | None:
            plan: Plan | None = getattr(self._local, "plan", None)
            site = None if plan is None else plan.blend.site(name)
            if plan is None or site is None:
                return None
            if kind == "leaf":
                return _own_values(name, plan, site, args, kwargs, output)
            given = args[0] if args else next(iter(kwargs.values()))
            return _added(name, kind, plan, site, given, output)

        return hook


def _added(name: str, kind: Kind, plan: Plan, site: _Site, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The output of a linear layer or an embedding, with every row's delta."""
    flat = plan.flat(given, name)
    count = len(plan.rows) * (plan.tokens if flat else 1)
    if given.shape[0] != count:  # one input for all rows
        given, output = given.expand(count, *given.shape[1:]), output.expand(count, *output.shape[1:])
        output = output.clone()
    if site.inner is not None and site.outer is not None:
        hidden = F.embedding(given, site.inner) if kind == "embedding" else given @ site.inner
        mask = plan.mask(site.ranks, flat)
        if mask is not None:
            hidden = hidden.masked_fill(mask.view(mask.shape[0], *[1] * (hidden.dim() - 2), mask.shape[1]), 0)
        # added in place: an output of its own would cost more than the product
        output.view(-1, output.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), site.outer)
    for place, delta in site.dense.items():
        _add(plan, place, flat, output, given, lambda x, delta=delta: _dense(kind, x, delta))
    for place, delta in site.biases.items():
        _add(plan, place, flat, output, given, lambda x, delta=delta: delta)
    return output


def _dense(kind: Kind, given: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    if kind == "embedding":
        return F.embedding(given, delta)
    return F.linear(given, delta) if kind == "linear" else given @ delta


def _add(
    plan: Plan,
    place: int,
    flat: bool,
    output: torch.Tensor,
    given: torch.Tensor,
    gain: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    if plan.only == place:
        output += gain(given)
        return
    picked = plan.picked(place, flat)
    if picked.numel():
        output[picked] += gain(given[picked])


def _own_values(
    name: str, plan: Plan, site: _Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> torch.Tensor:
    """The output of any other leaf: it runs again, with the variant's parameters, on the variant's rows."""
    tensors = [given for given in (*args, *kwargs.values()) if isinstance(given, torch.Tensor)]
    if not isinstance(output, torch.Tensor) or not tensors:
        raise ServeError(
            f"`{name}` takes or gives no plain tensor, so it cannot run for some rows of a batch only",
            hint="kinfold restore writes the variant as a model directory, which any server of its own can serve",
        )
    flat = plan.flat(tensors[0], name)
    count = len(plan.rows) * (plan.tokens if flat else 1)
    shared = tensors[0].shape[0] != count
    result = output.expand(count, *output.shape[1:]).clone() if shared else output.clone()
    for place, twin in site.twins.items():
        picked = plan.picked(place, flat)
        if picked.numel():
            rows = None if shared else picked
            result[picked] = twin.forward(
                *_pick(args, rows), **dict(zip(kwargs, _pick(kwargs.values(), rows), strict=True))
            )
    return result


def _pick(values: Any, rows: torch.Tensor | None) -> list[Any]:
    return [value[rows] if rows is not None and isinstance(value, torch.Tensor) else value for value in values]
