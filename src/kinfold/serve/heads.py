"""Heads of classifiers: what stands on the hidden states of an encoder, one for each variant that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from kinfold.errors import ServeError
from kinfold.tasks import model_class, quiet_transformers


class Head(Protocol):
    """Turns one row's hidden states into logits."""

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def nbytes(self) -> int: ...

    def logits(self, hidden: torch.Tensor, pooled: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
        """(classes,) of hidden (1, tokens, width), pooled (1, width) or None, ids (1, tokens): no padding."""
        ...


@dataclass(frozen=True)
class LinearHead:
    """`head.weight` (classes, width) and `head.bias` (classes,) on the mean of the last hidden states; float32."""

    weight: torch.Tensor
    bias: torch.Tensor
    labels: Sequence[str]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes

    def logits(self, hidden: torch.Tensor, pooled: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden[0].float().mean(0), self.weight, self.bias)


class ClassHead:
    """What a transformers sequence classifier does behind its base model, run by the class itself."""

    def __init__(self, config: Any, tensors: Mapping[str, torch.Tensor], labels: Sequence[str]) -> None:
        kind = model_class(config)
        with quiet_transformers(), torch.device("meta"):
            self._model = kind(config).eval()
        self._given = _Given()
        setattr(self._model, self._model.base_model_prefix, self._given)
        self._model.load_state_dict(dict(tensors), strict=False, assign=True)
        missing = [name for name, tensor in self._model.state_dict().items() if tensor.is_meta]
        if missing:
            raise ServeError(f"the classifier {kind.__name__} lacks `{missing[0]}`", hint="give its whole directory")
        self.labels = labels

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._model.state_dict().values())

    def logits(self, hidden: torch.Tensor, pooled: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as Output

        self._given.output = Output(last_hidden_state=hidden, pooler_output=pooled)
        return self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


class _Given(nn.Module):
    """Stands where the base model was and answers what it was given."""

    output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def labels_of(config: Mapping[str, Any], classes: int) -> list[str]:
    """Names of the classes: the config's where it names as many, else "0", "1", ..."""
    named = config.get("id2label")
    if isinstance(named, dict) and len(named) == classes:
        return [str(named[key]) for key in sorted(named, key=int)]
    return [str(number) for number in range(classes)]
