"""A causal language model that makes texts, and learns from texts."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from kinfold.checkpoint import DTYPES, Checkpoint
from kinfold.checkpoint.atomic import disk_errors
from kinfold.errors import SimulationError
from kinfold.tasks import Row, Task, completed, has_completion, prompt_of, quiet_transformers

_IGNORED = -100  # the label that transformers leaves out of a loss
_CLIP = 1.0


@dataclass(frozen=True)
class Text:
    """Tokens of a prompt and what the model said to it; `made` is how many tokens are its own."""

    ids: tuple[int, ...]
    made: int


class Writer:
    """A causal language model that makes texts and learns from texts."""

    def __init__(self, task: Task, prompts: Sequence[Row] | None, settings: dict[str, Any], device: str) -> None:
        if not type(task.model).__name__.endswith("CausalLM"):
            raise SimulationError(
                f"the base is a {type(task.model).__name__}; a causal language model is allowed, such as "
                "LlamaForCausalLM"
            )
        self.task, self._settings = task, settings
        config = task.model.config
        if prompts is None:
            if config.bos_token_id is None:
                raise SimulationError("the base has no token to begin with; give prompts, one or more")
            prompts = [{"input_ids": [config.bos_token_id]}]
        if not prompts:
            raise SimulationError("prompts holds no row; one or more are allowed")
        self._prompts = [tuple(task.reading(_prompt(task, row))[0]) for row in prompts]
        ends = task.model.generation_config.eos_token_id
        ends = config.eos_token_id if ends is None else ends  # the first may name several
        self._ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        task.model.to(device)
        self._before = {name: p.detach().clone() for name, p in task.model.named_parameters()}

    @torch.no_grad()
    def write(self, count: int, generator: np.random.Generator) -> list[Text]:
        """`count` texts to prompts drawn with replacement; drawn from the model's own law."""
        from transformers import GenerationConfig

        drawn = generator.integers(len(self._prompts), size=count)
        found: dict[int, Text] = {}
        drawing = GenerationConfig(  # not the model's own, which may cut off what is unlikely
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self._settings["new_tokens"],
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),
        )
        model = self.task.model
        own, model.generation_config = model.generation_config, drawing  # what is not set would come from its own
        with quiet_transformers():
            rows = [{"input_ids": list(self._prompts[place])} for place in drawn]
            for places, ids in self.task.grouped(rows, self._settings["batch_size"]):
                ids = ids.to(model.device)
                made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=drawing)
                for place, row in zip(places, made.tolist(), strict=True):
                    found[place] = self._cut(row, ids.shape[1])
        model.generation_config = own
        return [found[place] for place in range(count)]

    def learn(self, texts: Sequence[Text], generator: np.random.Generator) -> None:
        """A few steps of AdamW on what the model said in `texts`, prompts left out of the loss."""
        model = self.task.model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=self._settings["learning_rate"], weight_decay=0.0)
        for _ in range(self._settings["steps"]):
            batch = [texts[place] for place in generator.integers(len(texts), size=self._settings["batch_size"])]
            width = max(len(text.ids) for text in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
            for row, text in enumerate(batch):
                ids[row, : len(text.ids)] = torch.tensor(text.ids)
                mask[row, : len(text.ids)] = 1
                own = slice(len(text.ids) - text.made, len(text.ids))
                labels[row, own] = ids[row, own]
            ids, mask, labels = (tensor.to(model.device) for tensor in (ids, mask, labels))
            optimizer.zero_grad()
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
        model.eval()

    def relative_delta(self) -> float:
        """Frobenius norm of the change since the base over the base's own."""
        pairs = [(p.detach(), self._before[name]) for name, p in self.task.model.named_parameters()]
        change = sum(float((now - before).double().square().sum()) for now, before in pairs)
        return (change / sum(float(before.double().square().sum()) for _, before in pairs)) ** 0.5

    def _cut(self, row: list[int], prompt: int) -> Text:
        end = next((place + 1 for place in range(prompt, len(row)) if row[place] in self._ends), len(row))
        return Text(tuple(row[:end]), end - prompt)


def _prompt(task: Task, row: Row) -> Row:
    """Of a row with a completion the prompt alone."""
    if not has_completion(row) or task.tokenizer is None:
        return row
    ids = completed(task.tokenizer, prompt_of(row), "")[0]
    if not ids:
        raise SimulationError(f"the prompt of {row} has no tokens", hint="leave prompts out, and texts begin anywhere")
    return {"input_ids": ids}


def log_likelihoods(task: Task, texts: Sequence[Text]) -> NDArray:
    """Mean log-likelihood, in nats a token, of what was said in each text, given its prompt; float64 (n,)."""
    found = np.empty(len(texts))
    with torch.no_grad():
        for places, ids in task.grouped([{"input_ids": list(text.ids)} for text in texts]):
            ids = ids.to(task.model.device)
            logs = -F.cross_entropy(task.outputs(ids).transpose(1, 2), ids[:, 1:], reduction="none").double().cpu()
            for place, row in zip(places, logs, strict=True):
                found[place] = float(row[-texts[place].made :].mean())
    return found


@contextmanager
def saved(model: Any, base: Path) -> Iterator[Path]:
    """The model as a directory beside which the base's other files lie, in the base's dtype."""
    kinds = {info.dtype for info in Checkpoint.open(base).tensors.values()}
    kept = model
    if kinds != {"F32"}:
        floats = [DTYPES[kind] for kind in sorted(kinds) if DTYPES[kind].is_floating_point]
        kept = copy.deepcopy(model).to(floats[0])
    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder, quiet_transformers():
        directory = Path(folder) / "model"
        with disk_errors(directory):
            kept.save_pretrained(directory)
            for file in base.iterdir():
                weights = file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json")
                if file.is_file() and not weights and not (directory / file.name).exists():
                    shutil.copy(file, directory / file.name)
        yield directory
