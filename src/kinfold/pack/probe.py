"""What a variant answers to a fixed probe: told once, so that whoever serves it later can prove that it is active."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from kinfold.pack.restore import restore
from kinfold.tasks import Task

TOKENS = 16


def probe_ids(vocabulary: int, seed: int = 0) -> list[int]:
    """16 token ids below the vocabulary's size, the same everywhere for one seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (TOKENS,), generator=generator).tolist()


def probe_outputs(directory: str | Path, *, seed: int = 0, top: int = 32) -> dict[str, Any]:
    """What a restored variant answers to the probe, for a report that travels with its pack.

    Args:
        directory: of the restored model.
        seed: of the probe.
        top: so many of the likeliest tokens are told.

    Returns:
        `ids`, and `top`: pairs of token and log-probability after these ids; of an encoder, of index and value of
        the mean hidden state, the largest first.

    Raises:
        CheckpointError: transformers cannot load the directory.
    """
    task = Task.load(directory)
    core = task.model if task.model.can_generate() else task.model.base_model
    ids = probe_ids(core.get_input_embeddings().num_embeddings, seed)
    given = torch.tensor([ids])
    with torch.inference_mode():
        output = core(input_ids=given, attention_mask=torch.ones_like(given))
    generates = task.model.can_generate()
    answer = output.logits[0, -1].log_softmax(-1) if generates else output.last_hidden_state[0].mean(0)
    order = (answer if generates else answer.abs()).topk(min(top, answer.numel())).indices.tolist()
    return {"ids": ids, "top": [[place, float(answer[place])] for place in order]}


def probe_pack(pack: str | Path, base: str | Path) -> dict[str, Any]:
    """The same of a pack: it is restored to a temporary folder and its model is run.

    Raises:
        PackError, WrongBaseError, CheckpointError: it cannot be restored or run.
    """
    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder:
        restore(pack, base, Path(folder) / "restored")
        return probe_outputs(Path(folder) / "restored")
