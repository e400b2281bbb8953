"""The variant that is to forget: its model, what it makes of rows, and putting restored tensors into it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinfold.checkpoint import Checkpoint
from kinfold.checkpoint.adapter import is_adapter
from kinfold.errors import CheckpointError, ForgetError, ForgetOptionError
from kinfold.forget.config import ForgetConfig
from kinfold.forget.measure import least_likely
from kinfold.forget.tokens import Reader, Tokens
from kinfold.pack.manifest import Piece
from kinfold.pack.member import Base, PathLike, stem
from kinfold.pack.members import materialise, open_member
from kinfold.tasks import BATCH_TOKENS, TASKS, Answers, Task, device_of, kind_of

Losses = Callable[[torch.Tensor], torch.Tensor]  # numbers of rows (b,) to their losses (b,), nats
LIMITLESS = 1 << 20  # a tokenizer without a limit names an astronomical one


@dataclass(frozen=True)
class Facts:
    """What a model makes of rows, float64 (n,) each.

    Attributes:
        losses: nats; the mean over a causal LM's counted tokens.
        right: 1 or 0 of a classifier; the share of counted tokens that are the most likely ones, of a causal LM.
        least: mean loss of the least likely counted tokens; the loss itself of a classifier.
    """

    losses: np.ndarray
    right: np.ndarray
    least: np.ndarray


@dataclass
class Subject:
    """A model that answers rows.

    Attributes:
        checkpoint: its directory.
        task: reads it.
        model: the model and its head as one module, frozen, in evaluation mode.
        kind: the task's name.
        device: that it is on.
        exact: forwards are to be differentiated twice, so attention runs by its plain formula.
    """

    checkpoint: Checkpoint
    task: Task
    model: Answers
    kind: str
    device: torch.device
    exact: bool = False

    @classmethod
    def load(cls, directory: Path, task: str = "auto", device: str = "auto") -> Subject:
        """Load a model directory in float32.

        Raises:
            CheckpointError: it cannot be read.
            ForgetError: no loss of a row is known for it, or `task` is another one.
            ForgetOptionError: there is no such device.
        """
        chosen = device_of(device, ForgetOptionError)
        if task not in TASKS:
            raise ForgetOptionError(f"task is {task!r}; {', '.join(map(repr, TASKS))} are allowed")
        loaded = Task.load(directory)
        model = Answers(loaded)
        kind = kind_of(model, task, ForgetError)
        if hasattr(loaded.model.config, "use_cache"):
            loaded.model.config.use_cache = False  # of the loaded copy: a cache would only take memory
        return cls(Checkpoint.open(directory), loaded, model.to(chosen).eval(), kind, chosen)

    @property
    def classes(self) -> int:
        head = self.model.head
        return head.out_features if head is not None else self.task.model.config.num_labels

    def reader(self, cut: int | None = None) -> Reader:
        """What turns rows into this model's tokens, at most `cut` of them."""
        config = self.task.model.config
        limits = [getattr(config, "max_position_embeddings", None), getattr(self.task.tokenizer, "model_max_length", 0)]
        known = [limit for limit in limits if limit and 0 < limit < LIMITLESS]
        vocabulary = self.task.model.get_input_embeddings().num_embeddings
        context = min(known, default=None)
        return Reader(self.task.tokenizer, self.kind, self.classes, vocabulary, context, cut)

    def losses(self, rows: Sequence[Tokens]) -> Losses:
        """The closure that `unlearn` takes: row numbers (b,) to losses (b,), with a graph where one is recorded."""

        def of(numbers: torch.Tensor) -> torch.Tensor:
            batch = [rows[number] for number in numbers.tolist()]
            if not torch.is_grad_enabled():
                return torch.from_numpy(self.facts(batch).losses).to(self.device, torch.float32)
            if not batch:
                return torch.zeros(0, device=self.device)
            return torch.cat([self._mean(group, *self._losses(group)) for group in self._groups(batch)])

        return of

    @torch.no_grad()
    def facts(self, rows: Sequence[Tokens]) -> Facts:
        """Losses and accuracies of rows in their order, in batches of like lengths."""
        found = np.zeros((3, len(rows)))
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
        while order:
            longest = len(rows[order[-1]].ids)
            step = 1 if self._alone else max(1, BATCH_TOKENS // longest)
            places, order = order[-step:], order[:-step]
            batch = [rows[place] for place in places]
            losses, right, counted = self._answers(batch)
            found[0, places] = self._mean(batch, losses, counted).cpu().double().numpy()
            shares = (right & counted).sum(1) / counted.sum(1) if counted is not None else right
            found[1, places] = shares.cpu().double().numpy()
            found[2, places] = found[0, places]
            if counted is not None:
                pairs = zip(losses.cpu().numpy(), counted.cpu().numpy(), strict=True)
                found[2, places] = [least_likely(values[mask]) for values, mask in pairs]
        return Facts(*found)

    def hidden(self, rows: Sequence[Tokens], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (b, t, d) after a layer, 0 being the embedding, and the mask (b, t) of real tokens."""
        ids, mask = self._padded(rows)
        result = self.task.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        return result.hidden_states[layer], mask.bool()

    @torch.no_grad()
    def put(self, pieces: Iterable[tuple[Piece, torch.Tensor]]) -> None:
        """Overwrite parameters by tensors of a checkpoint; those that the model does not hold are passed over."""
        for piece, tensor in pieces:
            parameter = self.parameter(piece.name)
            if parameter is not None:
                view = parameter.data[slice(*piece.rows)] if piece.rows else parameter.data
                view.copy_(tensor.reshape(view.shape))

    def parameter(self, name: str) -> torch.nn.Parameter | None:
        """The model's parameter for a tensor of the checkpoint, or of the head beside it."""
        prefix = getattr(self.task.model, "base_model_prefix", "") + "."
        spellings = (name, name.removeprefix(prefix), prefix + name)
        found = next((self._own[f"model.{s}"] for s in spellings if f"model.{s}" in self._own), None)
        return self._own.get(name) if found is None and name.startswith("head.") else found

    def release(self) -> None:
        """Free the weights; the model is of no use afterwards."""
        self.__dict__.pop("_own", None)  # it would hold them all
        self.model.to("meta")

    @cached_property
    def _own(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.model.named_parameters(remove_duplicate=False))

    @property
    def _alone(self) -> bool:
        """A classifier on a decoder finds a row's last token by the padding token; without one, rows go alone."""
        return self.kind == "sequence-classification" and self.task.model.config.pad_token_id is None

    def _groups(self, batch: list[Tokens]) -> list[list[Tokens]]:
        return [[one] for one in batch] if self._alone else [batch]

    def _padded(self, batch: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, (b, t) int64, padded at the right."""
        longest = max(len(one.ids) for one in batch)
        pad = getattr(self.task.model.config, "pad_token_id", None) or 0
        ids = torch.full((len(batch), longest), pad)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            mask[row, : len(one.ids)] = 1
        return ids.to(self.device), mask.to(self.device)

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        plain = sdpa_kernel(SDPBackend.MATH) if self.exact and torch.is_grad_enabled() else nullcontext()
        with plain:  # fused attention has no second derivative
            result = self.task.model(input_ids=ids, attention_mask=mask)
            if self.model.head is None:
                return result.logits
            weight = mask[..., None].to(result.last_hidden_state)
            return self.model.head((result.last_hidden_state * weight).sum(1) / weight.sum(1))

    def _losses(self, batch: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor | None]:
        losses, _, counted = self._answers(batch)
        return losses, counted

    def _answers(self, batch: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Losses, which answers are right, and which tokens count: (b, t - 1) of a causal LM, else (b,) and None."""
        ids, mask = self._padded(batch)
        logits = self._logits(ids, mask)
        if self.kind != "causal-lm":
            labels = torch.tensor([one.label for one in batch], device=self.device)
            return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels, None
        logits, aims = logits[:, :-1], ids[:, 1:]
        places = torch.arange(1, ids.shape[1], device=self.device)
        counted = (places >= torch.tensor([[one.first] for one in batch], device=self.device)) & mask[:, 1:].bool()
        losses = F.cross_entropy(logits.transpose(1, 2), aims, reduction="none")
        return losses, logits.argmax(2) == aims, counted

    @staticmethod
    def _mean(batch: Sequence[Tokens], losses: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
        return losses if counted is None else (losses * counted).sum(1) / counted.sum(1)


@contextmanager
def directory_of(base: PathLike, variant: PathLike) -> Iterator[Path]:
    """The variant's model directory; that of a pack or PEFT adapter on `base` is written out for the time.

    Raises:
        CheckpointError, PackError, AdapterError, WrongBaseError: one of the two cannot be read, or is not its base.
    """
    path = Path(variant)
    if not path.exists():
        raise CheckpointError(f"there is no `{path}`; a model directory or a pack is wanted", hint=f"ls {path.parent}")
    if not path.is_file() and not is_adapter(path):
        Checkpoint.open(base)  # a mistyped base is told now, not after training
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder:
        directory = Path(folder) / stem(path)
        materialise(open_member(path, Base.open(base)), directory)
        yield directory


def check_second_derivatives(model: Any, config: ForgetConfig) -> bool:
    """Whether the options need second derivatives, after a check that the model can give them.

    Raises:
        ForgetOptionError: its weights are quantised, or re-entrant checkpointing recomputes its activations.
    """
    exact = config.direction in ("signed", "squared") or (config.rho > 0 and config.penalty_gradient == "autograd")
    if not exact:
        return False
    quantised = getattr(model, "is_quantized", False) or not all(
        parameter.is_floating_point() for parameter in model.parameters()
    )
    reentrant = any(
        getattr(module, "gradient_checkpointing", False)
        and getattr(module._gradient_checkpointing_func, "keywords", {}).get("use_reentrant", False)
        for module in model.modules()
    )
    for found, what in ((quantised, "quantised weights"), (reentrant, "re-entrant gradient checkpointing")):
        if found:
            raise ForgetOptionError(
                f"direction={config.direction} with penalty_gradient={config.penalty_gradient} differentiates twice, "
                f"which {what} cannot",
                hint="direction=project, and penalty_gradient=difference",
            )
    return True
