"""Influence of training rows of any torch model, with the methods that dattri's attributors have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kinfold.audit.influence.compress import Compressor, Entries, Principal
from kinfold.audit.influence.estimate import Estimate
from kinfold.audit.influence.gradients import Loss, evaluating, is_linear, row_gradients, shape_of
from kinfold.audit.influence.mask import canonical
from kinfold.audit.influence.settings import Layout, Spec
from kinfold.errors import AuditError

SAMPLE = 1024  # rows that PCA learns its directions from
MAP_BYTES = 4 << 30


class MaskedInfluence:
    """Damped influence through compressed gradients, in memory.

    Loaders must give the same rows in the same order each time they are gone through: they may not shuffle.

    Args:
        loss: `loss(model, batch)` gives one loss a row, (rows,), and does not mix rows.
        model: its linear layers, nn.Linear or Conv1D, are looked at; any module with a `weight` may be named, at
            the price of a backward a row.
        spec: settings.

    Raises:
        AuditError: no such module, or too few coordinates for them.
    """

    def __init__(self, loss: Loss, model: nn.Module, spec: Spec | None = None) -> None:
        self.loss, self.model, self.spec = loss, model, spec or Spec()
        self.modules = choose_modules(model, self.spec.modules)
        self.shapes = {name: shape_of(module) for name, module in self.modules.items()}
        self.compressors = self._without_data()
        self._cached: tuple[Iterable[Any], np.ndarray, Estimate] | None = None

    def cache(self, loader: Iterable[Any]) -> MaskedInfluence:
        """Compress the gradients of all training rows and factor their curvature; returns self.

        Raises:
            AuditError: fewer than 2 rows, gradients that are not finite, or a loss that does not fit.
        """
        if self.spec.compressor == "pca":
            self.compressors = self._principal(loader)
        gradients = self.gradients(loader)
        stream = [(gradients, np.ones(len(gradients)))]
        estimate = Estimate.of(stream, self.layout, len(gradients), self.spec.curvature)
        self._cached = (loader, gradients, estimate.damped(self.spec.damping))
        return self

    def attribute(self, train_loader: Iterable[Any], probe_loader: Iterable[Any]) -> torch.Tensor:
        """Scores float64 (n_train, n_probe): above 0 where a training row lowers a probe's loss.

        The curvature is that of the rows given to `cache`, or of `train_loader` if there was no such call.
        """
        gradients, estimate = self._known(train_loader)
        return torch.from_numpy(gradients @ estimate.directions(self.gradients(probe_loader)))

    def self_attribute(self, loader: Iterable[Any]) -> torch.Tensor:
        """Each row's score on its own loss, float64 (n,): the diagonal of `attribute(loader, loader)`."""
        gradients, estimate = self._known(loader)
        return torch.from_numpy(estimate.own(gradients))

    def gradients(self, loader: Iterable[Any]) -> np.ndarray:
        """Compressed and rescaled gradients of all rows of a loader, (n, width)."""
        with evaluating(self.model):
            found = [
                row_gradients(self.loss, self.model, batch, self.modules, self.compressors)[0].cpu().numpy()
                for batch in loader
            ]
        if not found:
            raise AuditError("the loader gives no batch")
        whole = np.concatenate(found)
        bad = np.flatnonzero(~np.isfinite(whole).all(1))
        if bad.size:
            raise AuditError(f"the gradients of rows {', '.join(map(str, bad[:10]))} are not finite")
        return whole * self.layout.rescale.astype(whole.dtype)

    @property
    def layout(self) -> Layout:
        return Layout.of(self.compressors, self.spec)

    @property
    def map_bytes(self) -> int:
        """Bytes of the compressors' own matrices; masks have none."""
        return sum(compressor.map_bytes for compressor in self.compressors)

    def damped(self, damping: float) -> MaskedInfluence:
        """Change the damping without computing gradients again; returns self."""
        if self._cached is None:
            raise AuditError("there is no curvature to damp yet", hint="call `cache` first")
        loader, gradients, estimate = self._cached
        self._cached = (loader, gradients, estimate.damped(damping))
        return self

    def _known(self, loader: Iterable[Any]) -> tuple[np.ndarray, Estimate]:
        if self._cached is None:
            self.cache(loader)
        assert self._cached is not None
        cached, gradients, estimate = self._cached
        return (gradients if cached is loader else self.gradients(loader)), estimate

    def _without_data(self) -> list[Compressor]:
        if self.spec.compressor in ("gaussian", "pca"):
            widths = self.spec.widths(self.shapes)
            need = 4 * sum(shape[0] * shape[1] * widths[name] for name, shape in self.shapes.items()) * self.spec.masks
            if need > MAP_BYTES:
                raise AuditError(
                    f"`{self.spec.compressor}` would need matrices of {need} bytes; {MAP_BYTES} are allowed",
                    hint='a smaller keep, or compressor="entry", which needs none',
                )
        return [] if self.spec.compressor == "pca" else self.spec.compressors(self.shapes)

    def _principal(self, loader: Iterable[Any]) -> list[Compressor]:
        """Directions of each module, from the first rows; modules in turns, so that one's whole gradients fit."""
        widths = self.spec.widths(self.shapes)
        found: list[Compressor] = []
        with evaluating(self.model):
            for names in _turns(self.shapes):
                modules = {name: self.modules[name] for name in names}
                whole = [Entries(name, self.shapes[name], 1 << 62, 0) for name in names]
                sample = torch.cat(list(self._first(loader, modules, whole)))
                ends = np.cumsum([one.width for one in whole]).tolist()
                for one, end in zip(whole, ends, strict=True):
                    part = sample[:, end - one.width : end]
                    found.append(Principal(one.name, one.shape, widths[one.name], part))
        return found

    def _first(
        self, loader: Iterable[Any], modules: Mapping[str, nn.Module], whole: Sequence[Compressor]
    ) -> Iterator[torch.Tensor]:
        left = min(SAMPLE, max(64, (512 << 20) // (4 * sum(one.width for one in whole))))
        for batch in loader:
            if left <= 0:
                return
            gradients = row_gradients(self.loss, self.model, batch, modules, whole)[0]
            yield gradients[:left]
            left -= len(gradients)


def choose_modules(model: nn.Module, names: tuple[str, ...] | None) -> dict[str, nn.Module]:
    """Modules by the canonical names of their weights, such as `encoder.layer.0.weight`.

    Args:
        names: of modules or of their weights, as the model has them or canonical; None for the linear layers of an
            adapter where there is one, else for all linear layers.

    Raises:
        AuditError: a name is none of the model's modules, or none is linear.
    """
    weighted = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.dim() >= 2  # type: ignore[union-attr]
    }
    if names is not None:
        spelt = {canonical(f"{name}.weight"): module for name, module in weighted.items()}
        spelt |= {f"{name}.weight": module for name, module in weighted.items()}
        wanted = [name if name.endswith("weight") else f"{name}.weight" for name in names]
        missing = [name for name in wanted if name not in spelt]
        if missing or not wanted:
            raise AuditError(f"there is no module `{', '.join(missing)}`; for instance {', '.join(list(spelt)[:3])}")
        return {canonical(name): spelt[name] for name in wanted}
    linear = {name: module for name, module in weighted.items() if is_linear(module)}
    adapter = {name: module for name, module in linear.items() if ".lora_" in name or ".modules_to_save." in name}
    if not linear:
        raise AuditError("the model has no linear layer", hint="name modules with a weight in `modules`")
    return {canonical(f"{name}.weight"): module for name, module in (adapter or linear).items()}


def _turns(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Modules in runs of at most 2 million values, or one that is larger."""
    runs: list[list[str]] = []
    size = 0
    for name, (d_out, d_in) in shapes.items():
        if not runs or size + d_out * d_in > 1 << 21:
            runs.append([])
            size = 0
        runs[-1].append(name)
        size += d_out * d_in
    return runs
