"""The variant under audit: its model, which of its modules are looked at, and what names its content."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from kinfold.audit.influence.attributor import choose_modules
from kinfold.audit.influence.names import base_names, linear_modules, plain
from kinfold.checkpoint import Checkpoint, digests, fingerprint
from kinfold.checkpoint.adapter import is_adapter
from kinfold.checkpoint.fingerprint import specs_of
from kinfold.errors import AdapterError, AuditError, MissingExtraError
from kinfold.pack.member import Base, Member, PathLike
from kinfold.pack.members import materialise, open_member
from kinfold.tasks import MAX_TOKENS, TASKS, TOKENIZER_FILES, Answers, Row, Task, device_of, kind_of, row_losses


@dataclass
class Subject:
    """A variant that is ready to be asked for gradients.

    Attributes:
        task: reads rows.
        model: answers them.
        kind: `causal-lm`, `sequence-classification` or `pooled-head`.
        modules: by the base's names of their weights, or canonical ones.
        fingerprint, base: of the variant and its base; see `StoreSpec`.
        tokenizer: BLAKE3 over its files.
        left_out: tensors that differ from the base's and are not looked at.
        left_share: their share of the delta's energy; None where it is not known.
        notes: what a reader of scores must know.
        max_tokens: of a row that are read.
    """

    task: Task
    model: Answers
    kind: str
    modules: dict[str, nn.Module]
    fingerprint: str
    base: str
    tokenizer: str
    left_out: list[str]
    left_share: float | None
    notes: list[str]
    max_tokens: int = MAX_TOKENS

    def losses(self, model: Any, batch: tuple[torch.Tensor, Sequence[Row]], reduction: Any = "mean") -> torch.Tensor:
        """A loss a row, nats."""
        ids, rows = batch
        ids = ids.to(next(model.parameters()).device)
        causal = self.kind == "causal-lm"
        first = [self.task.reading(row, self.max_tokens)[1] for row in rows] if causal else None
        return row_losses(model(ids), ids, rows, reduction, first)

    @property
    def classes(self) -> int:
        """Of the head of a classifier."""
        head = self.model.head
        return head.out_features if head is not None else self.task.model.config.num_labels


@contextmanager
def opened(
    variant: PathLike,
    base: PathLike | None,
    modules: Sequence[str] | None,
    task: str,
    device: str,
    at: float = 1.0,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[Subject]:
    """Load a model directory, a pack or a PEFT adapter, `at` of the way from its base.

    Raises:
        AuditError: a pack or adapter without its base, `at` without one or out of its range, no module to look at, a
            model without a known loss, or no such device.
        MissingExtraError: an adapter without peft.
        CheckpointError, PackError, AdapterError, WrongBaseError: as the readers.
    """
    if task not in TASKS:
        raise AuditError(f"task is {task!r}; {', '.join(map(repr, TASKS))} are allowed")
    if not 0 <= at <= 1:
        raise AuditError(f"at is {at!r}; 0, the base, to 1, the variant, is allowed")
    chosen, path = device_of(device, AuditError), Path(variant)
    if base is None and at != 1:
        raise AuditError(f"at is {at:g} of the way from the base, so the base is needed", hint="--base BASE")
    if base is None and (path.is_file() or is_adapter(path)):
        raise AuditError(f"`{path}` is no model directory, so its base is needed", hint="--base BASE")
    member = open_member(path, Base.open(base)) if base is not None else None
    with tempfile.TemporaryDirectory(prefix="kinfold-") if path.is_file() else nullcontext("") as folder:
        directory = path
        if path.is_file() and member is not None:
            directory = Path(folder) / "variant"
            materialise(member, directory)
        elif member is not None and member.kind == "adapter":
            directory = member.base.checkpoint.directory
        subject = _subject(path, directory, member, modules, at)
        subject.max_tokens = max_tokens
        subject.kind = kind_of(subject.model, task, AuditError)
        subject.model.to(chosen)
        yield subject


def _subject(path: Path, directory: Path, member: Member | None, modules: Sequence[str] | None, at: float) -> Subject:
    task = Task.load(directory)
    if member is not None and member.kind == "adapter":
        _adapt(task, path, at)
    elif member is not None and at != 1:
        task = task.rebuilt(_between(member, at))
    model = Answers(task)
    left_out, left_share, notes = [], None, []
    if member is None:
        checkpoint = Checkpoint.open(directory)
        mark, known = fingerprint(specs_of(checkpoint), digests(checkpoint)), linear_modules(model)
        found = known
    elif member.kind == "adapter":
        mark = member.fingerprint
        found = known = {plain(name): module for name, module in choose_modules(model, None).items()}
        if not any(".lora_" in name for name in known):
            raise AuditError(f"no linear module of the base is adapted by `{path}`, so there is nothing to look at")
        notes.append("gradients are by the adapter's own factors")
    else:
        mark = blake3(path.read_bytes()).hexdigest() if path.is_file() else member.fingerprint
        known = linear_modules(model, base_names(member))
        found, left_out, left_share = _changed(member, known)
    if modules is not None:
        wanted = [name if name.endswith(".weight") else f"{name}.weight" for name in modules]
        missing = [name for name in wanted if name not in known]
        if missing:
            raise AuditError(f"there is no linear module `{missing[0]}`; for instance {', '.join(list(known)[:3])}")
        found = {name: known[name] for name in wanted}
    if not found:
        raise AuditError(f"no linear module of `{path}` differs from the base, so there is nothing to look at")
    embeddings = task.model.get_input_embeddings()
    if any(module.weight is embeddings.weight for module in found.values()):
        notes.append("of the output layer, which is tied to the embedding, the output side only is looked at")
    base = member.base.fingerprint if member is not None else ""
    tokenizer = _tokenizer_hash(directory)
    if at != 1 and member is not None:
        mark += f" at {at:g}"  # gradients elsewhere are of another store
        notes.append(f"gradients are taken at {at:g} of the way from the base")
        if member.whole:
            names = ", ".join(member.whole[:3]) + (", ..." if len(member.whole) > 3 else "")
            notes.append(f"what the base has not, or in another shape, is the variant's there too: {names}")
    found = dict(sorted(found.items()))  # columns do not depend on how the model was found
    return Subject(task, model, "", found, mark, base, tokenizer, left_out, left_share, notes)


def _between(member: Member, at: float) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint `at` of the way from the base to the variant; those without a delta are the variant's."""
    tensors = {name: member.value(name) for name in member.specs}
    for name in member.changed:
        tensors[member.own[name]] = member.base.checkpoint.read(name).float() + at * member.delta(name)
    return tensors


def _changed(member: Member, known: dict[str, nn.Module]) -> tuple[dict[str, nn.Module], list[str], float]:
    """Modules that differ from the base; names of other tensors that do; their share of the delta's energy."""
    energy = {name: float(member.delta(name).double().square().sum()) for name in member.changed}
    changed = [name for name, value in energy.items() if value > 0] + member.whole
    found = {name: known[name] for name in changed if name in known}
    total = sum(energy.values())
    left_out = [name for name in changed if name not in found]
    share = sum(energy.get(name, 0.0) for name in left_out) / total if total else 0.0
    return found, left_out, share


def _tokenizer_hash(directory: Path) -> str:
    there = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    hasher = blake3()
    for path in there:
        data = path.read_bytes()
        hasher.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return hasher.hexdigest() if there else ""


def _adapt(task: Task, adapter: Path, at: float) -> None:
    """Put a PEFT adapter on the task's model, in place, its delta times `at`."""
    try:
        from peft import PeftModel
    except ModuleNotFoundError as missing:
        raise MissingExtraError("peft", "peft") from missing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's of what it reads of transformers, and of tied weights
            task.model = PeftModel.from_pretrained(task.model, str(adapter)).get_base_model().eval()
    except (ValueError, RuntimeError, KeyError) as cause:
        raise AdapterError(f"PEFT cannot put `{adapter}` on the base: {cause}") from cause
    if at != 1:
        with torch.no_grad():
            for name, parameter in task.model.named_parameters():
                if ".lora_B." in name or ".lora_embedding_B." in name:  # the factors that began at zero
                    parameter.mul_(at)
