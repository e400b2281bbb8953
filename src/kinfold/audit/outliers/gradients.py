"""What each row alone would do to the bias of a module: per-sample gradients with one backward pass a batch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from kinfold.errors import AuditError

AUTO, LAST_NORM = "auto", "last-norm"


def sample_gradients(
    model: torch.nn.Module,
    batch: torch.Tensor | Mapping[str, torch.Tensor],
    *,
    at: str = AUTO,
    labels: torch.Tensor | None = None,
) -> np.ndarray:
    """The gradient of each row's cross-entropy by a bias added to a module's output, summed over positions.

    Where the module has a bias it is that bias's gradient; a model without biases has it too. The graph is cut below
    the module, so only the layers above are gone through.

    Args:
        model: gives logits (n, c), or (n, tokens, vocabulary) for the next token; in evaluation mode, float32 or wider.
        batch: what the model takes, by position or by name; `attention_mask` (n, tokens) marks padding by 0.
        at: a module's name; `auto`: the widest linear module in the last repeated block; `last-norm`.
        labels: int64 (n,); the model's own predictions if not given. Of a causal LM the next tokens are the labels.

    Returns:
        float64 (n, d), d the width of that output. A causal LM's are means over its tokens.

    Raises:
        AuditError: no such module, its output is not (n, d) or (n, tokens, d), it did not run once, or no logits.
    """
    named = dict(batch) if isinstance(batch, Mapping) else {}

    def forward() -> torch.Tensor:
        result = model(**named) if isinstance(batch, Mapping) else model(batch)
        logits = result if isinstance(result, torch.Tensor) else getattr(result, "logits", None)
        if logits is None:
            raise AuditError(f"{type(model).__name__} gives no logits, so there is no loss to take a gradient of")
        return logits[:, :-1] if logits.dim() == 3 else logits

    ids = named.get("input_ids")
    return gradients_at(find_module(model, at), forward, labels=labels, ids=ids, mask=named.get("attention_mask"))[1]


def gradients_at(
    place: tuple[str, torch.nn.Module],
    forward: Callable[[], torch.Tensor],
    *,
    labels: torch.Tensor | None = None,
    ids: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, np.ndarray]:
    """Logits of a forward pass and the gradients at a module: see `sample_gradients`.

    Args:
        place: the module and its name.
        forward: gives logits (n, c), or (n, tokens - 1, vocabulary).
        labels: int64 (n,).
        ids: int64 (n, tokens), where logits are of next tokens.
        mask: (n, tokens), 0 at padding.
    """
    with torch.enable_grad(), _caught(place) as seen:
        logits = forward()
        if logits.dim() == 3:
            if ids is None:
                raise AuditError("logits of tokens were given without `input_ids`, whose next tokens are the labels")
            counted = torch.ones_like(ids[:, 1:]) if mask is None else mask[:, 1:] * mask[:, :-1]
            weights = counted.double() / counted.sum(1, keepdim=True).clamp(min=1)
            outer = _errors(logits.detach(), ids[:, 1:]) * weights.unsqueeze(-1)
        else:
            outer = _errors(logits.detach(), logits.argmax(-1) if labels is None else labels)
        if len(seen) != 1:
            raise AuditError(f"`{place[0]}` ran {len(seen)} times in one pass; a module that runs once is allowed")
        [found] = torch.autograd.grad(logits, seen, grad_outputs=outer.to(logits.dtype), allow_unused=True)
    if found is None:
        raise AuditError(f"the logits do not depend on the output of `{place[0]}`")
    summed = found.double().sum(1) if found.dim() == 3 else found.double()
    return logits.detach(), summed.cpu().numpy()


def _errors(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """softmax - onehot in float64; at the label minus the others' sum, for p - 1 is 0 where p is rounded to 1."""
    found = logits.double().softmax(-1).scatter(-1, labels.unsqueeze(-1), 0.0)
    return found.scatter(-1, labels.unsqueeze(-1), -found.sum(-1, keepdim=True))


@contextmanager
def _caught(place: tuple[str, torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Outputs of a module inside the block, each the start of a new graph."""
    name, module = place
    seen: list[torch.Tensor] = []

    def cut(_module: torch.nn.Module, _inputs: Any, output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.dim() not in (2, 3) or not output.is_floating_point():
            what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise AuditError(f"the output of `{name}` is {what}; (rows, tokens, width) or (rows, width) is allowed")
        seen.append(output.detach().requires_grad_(True))
        return seen[-1]

    handle = module.register_forward_hook(cut)
    try:
        yield seen
    finally:
        handle.remove()


def find_module(model: torch.nn.Module, at: str) -> tuple[str, torch.nn.Module]:
    """The module that `at` names, and its name.

    Raises:
        AuditError: there is none; names that are near are listed, with widths.
    """
    modules = dict(model.named_modules())
    if at in modules and at:
        return at, modules[at]
    if at == LAST_NORM:
        norms = [pair for pair in modules.items() if _is_norm(pair[1])]
        if norms:
            return norms[-1]
    if at == AUTO:
        wide = [(name, module) for name, module in modules.items() if _width(module) and name.startswith(_last(model))]
        if wide:
            return max(wide, key=lambda pair: _width(pair[1]))  # the first of the widest
    known = {name: _width(module) for name, module in modules.items() if _width(module)}
    near = difflib.get_close_matches(at, known, n=5, cutoff=0.3) or list(known)[-5:]
    listed = ", ".join(f"{name} ({known[name]})" for name in near)
    raise AuditError(f"`{at}` names no module of {type(model).__name__}; linear ones with their widths: {listed}")


def _is_norm(module: torch.nn.Module) -> bool:
    # each architecture of transformers has an RMSNorm class of its own
    return type(module).__name__.endswith("Norm") or isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


def _width(module: torch.nn.Module) -> int:
    """Outputs of a linear module, GPT-2's own kind too; 0 for others."""
    return getattr(module, "out_features", 0) or getattr(module, "nf", 0)


def _last(model: torch.nn.Module) -> str:
    """The path of the last of the repeated blocks, with a dot; empty where nothing is repeated."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    if not lists:
        return ""
    name, blocks = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))  # not experts in a block
    return f"{name}.{len(blocks) - 1}."
