"""A model that answers rows with an *output*: the logits of its head, or the mean of its last hidden states.

Of a model without a head the mean is over the attention mask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from kinfold.checkpoint import Checkpoint
from kinfold.errors import CheckpointError, KinfoldError
from kinfold.tasks.rows import Row
from kinfold.tasks.tokens import MAX_TOKENS, tokens_of

NAMED = 5  # missing weights that an error lists
BATCH_TOKENS = 2048
TOKENIZER_FILES = (  # any of these makes a tokenizer
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No hub, no progress bars, no chatter from transformers inside the block."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def model_class(config: Any) -> Any:
    """The class in `config.architectures`, or AutoModel where transformers has none of that name."""
    import transformers

    named = [getattr(transformers, name, None) for name in config.architectures or []]
    return next((kind for kind in named if kind is not None), transformers.AutoModel)


def tokenizer_of(directory: str | Path) -> Any:
    """The tokenizer of a model directory; None where it has none, which rows of `input_ids` do not need."""
    import transformers

    if any((Path(directory) / name).exists() for name in TOKENIZER_FILES):  # else some get an empty one
        with quiet_transformers(), suppress(Exception):
            return transformers.AutoTokenizer.from_pretrained(directory)
    return None


@dataclass
class Task:
    """A model with what it takes to answer rows.

    Attributes:
        model: float32, in evaluation mode.
        tokenizer: None where the directory has none; rows then need `input_ids`.
        head: (weight, bias) of a linear head kept beside an encoder as `head.weight` (classes, hidden)
            and `head.bias` (classes,); None where the model's own class has a head or there is none.
    """

    model: Any
    tokenizer: Any
    head: tuple[torch.Tensor, torch.Tensor] | None

    @classmethod
    def load(cls, directory: str | Path) -> Task:
        """Load a model directory.

        Raises:
            CheckpointError: transformers cannot build a model from it, or weights that it uses are not there.
        """
        import transformers

        checkpoint = Checkpoint.open(directory)
        with quiet_transformers():
            try:
                config = transformers.AutoConfig.from_pretrained(directory)
                model, loaded = model_class(config).from_pretrained(
                    directory, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
                )
            except (OSError, ValueError, RuntimeError) as cause:
                raise CheckpointError(f"transformers cannot load `{directory}`: {cause}") from cause
        _check_complete(Path(directory), model.eval(), loaded)
        return cls(model, tokenizer_of(directory), _head_beside(model, checkpoint.tensors.keys(), checkpoint.read))

    def rebuilt(self, tensors: Mapping[str, torch.Tensor]) -> Task:
        """The same task on other weights: `tensors` by their names in a checkpoint, in any dtype."""
        with quiet_transformers():
            model = type(self.model).from_pretrained(
                None, config=self.model.config, state_dict=dict(tensors), dtype=torch.float32
            )
        return Task(model.eval(), self.tokenizer, _head_beside(model, tensors.keys(), tensors.__getitem__))

    def output(self, row: Row) -> torch.Tensor:
        """(classes,) of a classifier, (tokens - 1, vocabulary) of a causal LM, (hidden,) of an encoder."""
        return self.outputs(self.token_ids(row))[0]

    def outputs(self, ids: torch.Tensor) -> torch.Tensor:
        """The same for rows of one length: `ids` (rows, tokens), int64; the first dimension is the row."""
        result = self.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        logits = getattr(result, "logits", None)
        if logits is not None:
            return logits[:, :-1] if logits.dim() == 3 and type(self.model).__name__.endswith("CausalLM") else logits
        hidden = result.last_hidden_state.mean(1)
        return hidden if self.head is None else F.linear(hidden, *self.head)

    def batches(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Token ids of all rows, those of one length together: no padding, so outputs are those of the rows alone."""
        return [ids for _, ids in self.grouped(rows)]

    def grouped(
        self, rows: Sequence[Row], limit: int = BATCH_TOKENS, most: int = MAX_TOKENS
    ) -> list[tuple[list[int], torch.Tensor]]:
        """The same with the places of the rows in `rows`; `limit` is the most rows a batch, `most` tokens a row."""
        by_length: dict[int, list[tuple[int, torch.Tensor]]] = {}
        for place, row in enumerate(rows):
            ids = self.token_ids(row, most)
            by_length.setdefault(ids.shape[1], []).append((place, ids))
        found = []
        for length, same in sorted(by_length.items()):
            step = min(limit, max(1, BATCH_TOKENS // length))
            for start in range(0, len(same), step):
                places, ids = zip(*same[start : start + step], strict=True)
                found.append((list(places), torch.cat(ids)))
        return found

    @property
    def has_logits(self) -> bool:
        return self.head is not None or self.model.base_model is not self.model  # a head stands on a base model

    def token_ids(self, row: Row, most: int = MAX_TOKENS) -> torch.Tensor:
        """int64 (1, tokens) of a row, see `reading`."""
        return torch.tensor([self.reading(row, most)[0]])

    def reading(self, row: Row, most: int = MAX_TOKENS) -> tuple[list[int], int]:
        """Token ids of a row, at most `most`, and the place of the first that a loss counts, see `tokens_of`."""
        return tokens_of(self.model, self.tokenizer, row, most)

    def parameters(self, names: Sequence[str]) -> dict[str, torch.nn.Parameter]:
        """The model's parameters for names of a checkpoint, with or without the prefix of the base model.

        Raises:
            CheckpointError: the model has no such parameter.
        """
        own = dict(self.model.named_parameters())
        prefix = getattr(self.model, "base_model_prefix", "") + "."
        found = {}
        for name in names:
            spellings = (name, name.removeprefix(prefix), prefix + name)
            match = next((own[s] for s in spellings if s in own), None)
            if match is None:
                raise CheckpointError(f"`{name}` is no parameter of {type(self.model).__name__}")
            found[name] = match
        return found


def _check_complete(directory: Path, model: Any, loaded: Mapping[str, Any]) -> None:
    """Refuse a model with random weights, which is what transformers makes of those that it does not find.

    Raises:
        CheckpointError: a weight is missing or has another shape; but for the pooler of a model without a head, whose
            states are averaged instead.
    """
    wrong = sorted((name, tuple(found), tuple(wanted)) for name, found, wanted in loaded["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors of `{directory}` do not fit its config.json: `{name}` is {found}, not {wanted}",
            hint="give the config.json that the weights were saved with",
        )
    bare = model.base_model is model
    missing = sorted(name for name in loaded["missing_keys"] if not (bare and "pooler" in name.split(".")))
    if missing:
        more = ", ..." if len(missing) > NAMED else ""
        raise CheckpointError(
            f"`{directory}` lacks {len(missing)} weights of {type(model).__name__}: {', '.join(missing[:NAMED])}{more}",
            hint="give a complete model directory, whose config.json names the class it was saved from",
        )


def _head_beside(
    model: Any, names: Collection[str], read: Callable[[str], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The linear head that a checkpoint keeps beside a model which knows none of that name."""
    if not {"head.weight", "head.bias"} <= set(names) or "head.weight" in dict(model.named_parameters()):
        return None
    return read("head.weight").float(), read("head.bias").float()


def device_of(device: str, error: type[KinfoldError]) -> torch.device:
    """The device of a name as torch spells it; `auto` is the GPU where there is one.

    Raises:
        error: there is none of that name, or it holds no values.
    """
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.zeros(1, device=found).cpu()  # torch takes the name of a device that is not there
    except (RuntimeError, AssertionError, ImportError) as cause:
        why = str(cause).split("\n")[0].split(". ")[0]  # torch explains itself at length
        raise error(f"there is no device `{device}` to compute on: {why}", hint="--device auto, or cpu") from cause
    return found
