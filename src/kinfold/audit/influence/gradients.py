"""Compressed per-row gradients of chosen modules: one forward and one backward a batch, no weight gradient formed.

The gradient of row i by a linear weight is sum_t delta_it x_it^T, with x the module's input and delta the
derivative of the row's loss by its output; a compressor keeps some of it (see `compress`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kinfold.audit.influence.compress import Compressor
from kinfold.audit.influence.mask import Shape
from kinfold.errors import AuditError

Loss = Callable[[Any, Any], torch.Tensor]  # (model, batch) -> a loss a row, (rows,)
Seen = dict[str, list[tuple[torch.Tensor, torch.Tensor, int]]]  # inputs, outputs, version of the outputs, a call each


def is_linear(module: nn.Module) -> bool:
    """Whether gradients of the module's weight come from hooks: nn.Linear, or the Conv1D of transformers."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # known without importing transformers


def weight_of(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)  # modules are chosen by it
    return weight


def shape_of(module: nn.Module) -> Shape:
    """(d_out, d_in) of a module's weight; further dimensions count as inputs."""
    weight = weight_of(module)
    first, rest = weight.shape[0], weight.numel() // weight.shape[0]
    return (rest, first) if is_conv1d(module) else (first, rest)


def row_gradients(
    loss: Loss, model: Any, batch: Any, modules: Mapping[str, nn.Module], compressors: Sequence[Compressor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compressed gradients of each row of a batch.

    Args:
        loss: gives one loss a row; it may not mix rows.
        model: in evaluation mode (see `evaluating`).
        batch: what `loss` takes.
        modules: by the canonical names of their weights.
        compressors: of these modules, in the order of the columns.

    Returns:
        (rows, sum of widths) float32 (float64 of a float64 model) and the losses (rows,), both detached.

    Raises:
        AuditError: `loss` gives no loss a row, an output is changed in place, or a module is called on other rows.
    """
    hooked = {name: module for name, module in modules.items() if is_linear(module)}
    others = {name: module for name, module in modules.items() if name not in hooked}
    with torch.enable_grad(), _recording(hooked) as seen:
        losses = loss(model, batch)
        _check_losses(losses)
        outputs = [output for calls in seen.values() for _, output, _ in calls]
        deltas: tuple[torch.Tensor | None, ...] = ()
        if outputs and losses.requires_grad:
            deltas = torch.autograd.grad(losses.sum(), outputs, allow_unused=True, retain_graph=bool(others))
        by_name = _products(seen, deltas, compressors, losses)
        if others:
            by_name |= _looped(losses, others, compressors)
    return torch.cat([by_name[c.name, number] for number, c in enumerate(compressors)], 1), losses.detach()


def loop_gradients(
    loss: Loss, model: Any, batch: Any, modules: Mapping[str, nn.Module], compressors: Sequence[Compressor]
) -> torch.Tensor:
    """The same gradients by one backward a row on the weights themselves: slow, for any module with a weight."""
    with torch.enable_grad():
        losses = loss(model, batch)
        _check_losses(losses)
        found = _looped(losses, modules, compressors)
    return torch.cat([found[c.name, number] for number, c in enumerate(compressors)], 1)


def _check_losses(losses: torch.Tensor) -> None:
    if losses.dim() != 1:
        raise AuditError(f"the loss has shape {list(losses.shape)}; one number a row is needed, such as (rows,)")


@contextmanager
def _recording(modules: Mapping[str, nn.Module]) -> Iterator[Seen]:
    seen: Seen = {name: [] for name in modules}

    def hook(name: str) -> Callable[..., torch.Tensor]:
        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if not output.requires_grad:  # nothing before it has a gradient
                output = output.detach().requires_grad_()
            seen[name].append((inputs[0].detach(), output, output._version))
            return output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _products(
    seen: Seen, deltas: Sequence[torch.Tensor | None], compressors: Sequence[Compressor], losses: torch.Tensor
) -> dict[tuple[str, int], torch.Tensor]:
    """What each compressor keeps; a module that is called twice adds up, one that is not called has zeros."""
    rows, left = len(losses), list(deltas)
    kept: dict[tuple[str, int], torch.Tensor] = {}
    wide = torch.float64 if losses.dtype == torch.float64 else torch.float32
    for name, calls in seen.items():
        mine = [(number, c) for number, c in enumerate(compressors) if c.name == name]
        for number, compressor in mine:
            kept[name, number] = torch.zeros(rows, compressor.width, dtype=wide, device=losses.device)
        for inputs, output, version in calls:
            delta = left.pop(0) if left else None
            if output._version != version:
                raise AuditError(f"the output of `{name}` is changed in place, which hides its gradient")
            if delta is None:
                continue
            if len(inputs) != rows:
                raise AuditError(f"`{name}` is called on {len(inputs)} rows of a batch of {rows}; leave it out")
            flat = inputs.reshape(rows, -1, inputs.shape[-1]), delta.reshape(rows, -1, delta.shape[-1])
            for number, compressor in mine:
                kept[name, number] = kept[name, number] + compressor.product(*flat)
    return kept


def _looped(
    losses: torch.Tensor, modules: Mapping[str, nn.Module], compressors: Sequence[Compressor]
) -> dict[tuple[str, int], torch.Tensor]:
    weights = [weight_of(module) for module in modules.values()]
    rows: dict[tuple[str, int], list[torch.Tensor]] = {}
    for loss in losses:
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        for (name, module), weight, gradient in zip(modules.items(), weights, found, strict=True):
            whole = torch.zeros_like(weight) if gradient is None else gradient
            flat = (whole.T if is_conv1d(module) else whole).reshape(1, -1)
            for number, compressor in enumerate(compressors):
                if compressor.name == name:
                    rows.setdefault((name, number), []).append(compressor.full(flat))
    return {key: torch.cat(parts) for key, parts in rows.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout inside the block; modes are put back afterwards.

    Raises:
        AuditError: a BatchNorm without running statistics would mix the rows of a batch even so.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise AuditError(
                f"`{name}` is a BatchNorm without running statistics: rows of a batch would share their gradients",
                hint="train it with track_running_stats=True",
            )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
