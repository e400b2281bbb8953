"""How far a model's answers are from the variant's, and the bare base that every codec starts from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kinfold.budget import Calibration
from kinfold.budget.importance import mean_divergence, targets
from kinfold.checkpoint import CheckpointWriter, Pair
from kinfold.errors import CheckpointError, KinfoldError
from kinfold.pack.source import Sources
from kinfold.tasks import Task, read_rows

RANDOM_ROWS, RANDOM_TOKENS = 16, 32


@dataclass(frozen=True)
class Probe:
    """Rows and what the variant answers to them; holds the variant's model in memory.

    Attributes:
        task: the variant's.
        inputs: what the rows are, in words.
        rows: as calibration takes them.
        wanted: the variant's output for each row.
    """

    task: Task
    inputs: str
    rows: Calibration
    wanted: list[torch.Tensor]

    @classmethod
    def load(cls, variant: Path, rows: str | Path | None, seed: int) -> Probe:
        """Ask the variant: `rows` of a JSONL file, or rows of random tokens of its vocabulary.

        Raises:
            CalibrationError: the file is malformed, or its rows do not fit the model.
            CheckpointError: transformers cannot load the model, or it takes no token ids.
        """
        given = read_rows(rows) if rows is not None else None
        task = Task.load(variant)
        try:
            probe = Calibration(given if given is not None else _random_rows(task, seed))
            wanted = targets(task, probe)
        except KinfoldError:
            raise
        except Exception as cause:  # a model of another kind may fail in any way
            raise CheckpointError(f"`{variant}` does not answer rows of token ids: {cause}") from cause
        drawn = f"{RANDOM_ROWS} rows of {RANDOM_TOKENS} random tokens, seed {seed}"
        return cls(task, drawn if given is None else f"{len(given)} rows of {rows}", probe, wanted)

    def divergence(self, tensors: Mapping[str, torch.Tensor]) -> float:
        """From the variant to the model of these weights: nats, or relative where there are no logits.

        The relative one is the distance of the mean hidden states over the variant's norm, root mean square
        over the rows.
        """
        found = mean_divergence(self.task.rebuilt(tensors), self.rows, self.wanted)
        if self.task.has_logits:
            return max(found, 0.0)  # float32 may end a hair below
        energy = sum(float(target.square().sum()) for target in self.wanted) / len(self.wanted)
        return (2 * found / energy) ** 0.5 if energy else 0.0  # `divergence` is half the squared distance


def _random_rows(task: Task, seed: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    known = task.model.get_input_embeddings().num_embeddings
    ids = torch.randint(known, (RANDOM_ROWS, RANDOM_TOKENS), generator=generator)
    return [{"input_ids": row} for row in ids.tolist()]


def bare_tensors(sources: Sources) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the variant in its dtype, with the base's values wherever the base has some.

    What is new in the variant, such as a head or the rows of new tokens, is the variant's.
    """
    pairs = {pair.name: pair for pair in sources.match.pairs}
    for name, pair in pairs.items():
        meant = pairs[pair.base] if pair.status == "alias" and pair.base else pair
        yield name, _bare(sources, meant)


def _bare(sources: Sources, pair: Pair) -> torch.Tensor:
    if pair.status == "new" or pair.base is None:
        return sources.variant.read(pair.name)
    info = sources.variant.tensors[pair.name]
    if pair.status != "resized":
        return sources.base.read(pair.base).to(info.torch_dtype)
    shared = sources.base.read(pair.base, rows=(0, pair.rows)).to(info.torch_dtype)
    return torch.cat([shared, sources.variant.read(pair.name, rows=(pair.rows, info.shape[0]))])


def write_bare(sources: Sources, out: Path) -> None:
    """The bare base as a model directory, with the variant's config and tokenizer."""
    out.mkdir()
    specs = [(info.name, info.dtype, info.shape) for info in sources.variant.tensors.values()]
    with CheckpointWriter(out, specs, metadata=sources.variant.metadata) as writer:
        for name, tensor in bare_tensors(sources):
            writer.write(name, tensor)
    kept, _ = sources.variant.side_files()
    for path in kept:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources.variant.directory / path, out / path)
