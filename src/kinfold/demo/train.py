"""A short fine-tune of a small encoder and its accuracy: what `kinfold demo` and the benchmarks pack.

The classifier is the mean of the last hidden states over the attention mask, then one linear head. Embeddings
stay frozen, so about half of the values change. A variant is an ordinary model directory whose
model.safetensors also carries `head.weight` (classes x hidden) and `head.bias` (classes).
"""

import json
import random
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kinfold.demo.texts import Row
from kinfold.errors import DataError, OutputError
from kinfold.tasks import quiet_transformers

RECIPE = 1  # raise it when a change here alters what is trained: caches are keyed by it
TRAIN_ROWS = 4800
MAX_TOKENS = 64
BATCH = 16
WARMUP_STEPS = 30
ENCODER_LR, HEAD_LR = 2e-4, 2e-3

Encoded = list[list[int]]  # token ids, one list a row


def train(
    base: Path,
    rows: Sequence[Row],
    out: Path,
    *,
    steps: int = 300,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune `base` on `rows` and save the variant as the model directory `out`.

    Args:
        base: model directory of a BERT-like encoder.
        rows: (text, label) pairs; at most 4800 of them are drawn.
        out: directory to write; it must not exist. It appears whole or not at all. What was trained is
            written beside it as `NAME.fleet.json` (see `record_path`).
        steps: optimiser steps of 16 rows.
        seed: of the drawn rows, their order, the head's start and dropout.
        progress: called after each step with the steps done and that step's loss (nats a row).

    Returns:
        The record: `labels` in the order of the head's rows, `rows` drawn, `steps`, `seed`, `precision`,
        `loss` (mean of the last 30 steps), `train_cpu_seconds`, `train_wall_seconds`, `threads`. Bytes of the
        weights depend on the CPU and the precision: only the accuracy is comparable between machines.

    Raises:
        OutputError: `out` exists.
        DataError: `rows` hold fewer than 16 rows or fewer than two labels.
    """
    labels = sorted({label for _, label in rows})
    if out.exists():
        raise OutputError(f"{out} exists already", hint=f"rm -r {shlex.quote(str(out))}  # or choose another directory")
    if len(rows) < BATCH or len(labels) < 2:
        raise DataError(f"{len(rows)} rows with {len(labels)} labels; at least {BATCH} rows and 2 labels are needed")
    started_cpu, started_wall = time.process_time(), time.perf_counter()
    rng = random.Random(seed)
    sample = rng.sample(list(rows), min(len(rows), TRAIN_ROWS))
    targets = torch.tensor([labels.index(label) for _, label in sample])
    texts = _encode(base, [text for text, _ in sample])
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
        torch.manual_seed(seed)
        encoder = _load_encoder(base)
        head = torch.nn.Linear(encoder.config.hidden_size, len(labels))
        losses = _fit(encoder, head, texts, targets, steps, rng, progress)
    record = {
        "recipe": RECIPE,
        "labels": labels,
        "rows": len(sample),
        "steps": steps,
        "seed": seed,
        "precision": precision(),
        "threads": torch.get_num_threads(),
        "loss": sum(losses[-30:]) / max(1, len(losses[-30:])),
        "train_cpu_seconds": time.process_time() - started_cpu,
        "train_wall_seconds": time.perf_counter() - started_wall,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(record_path(out), record)  # first, so that a directory is never without its record
    _save(base, encoder, head, out)
    return record


def accuracy(
    directory: Path, rows: Sequence[Row], head: Path | None = None, labels: Sequence[str] | None = None
) -> float:
    """Share of `rows` that the encoder in `directory` and a linear head classify rightly, 0 to 1.

    Args:
        directory: model directory of the encoder: a variant, a restored variant, or the bare base.
        rows: (text, label) pairs.
        head: directory whose model.safetensors holds `head.weight` and `head.bias`; `directory` if not given.
            The bare base with a variant's head gives "zero-delta": what is left when the delta is lost.
        labels: names of the head's classes in order. If not given they come from the record that `train`
            wrote beside the head, else from `rows` if every class occurs there.

    Raises:
        DataError: there is no head, its shape does not fit, or the names of its classes are not known.
    """
    weight, bias = _read_head(head or directory)
    names = _class_names(head or directory, rows, len(weight), labels)
    encoder = _load_encoder(directory).eval()
    if encoder.config.hidden_size != weight.shape[1]:
        raise DataError(
            f"head of {head or directory} reads {weight.shape[1]} features, "
            f"encoder {directory} gives {encoder.config.hidden_size}"
        )
    texts = _encode(directory, [text for text, _ in rows])
    order = sorted(range(len(rows)), key=lambda row: len(texts[row]))  # like lengths together: little padding
    right = 0
    with torch.inference_mode():
        for start in range(0, len(order), 4 * BATCH):
            batch = order[start : start + 4 * BATCH]
            logits = _features(encoder, [texts[row] for row in batch]) @ weight.T + bias
            guesses = logits.argmax(dim=1).tolist()
            right += sum(names[guess] == rows[row][1] for guess, row in zip(guesses, batch, strict=True))
    return right / len(rows)


def record_path(directory: Path) -> Path:
    """Where the record of a variant lies: beside its directory, which stays an ordinary model directory."""
    return directory.with_name(directory.name + ".fleet.json")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def precision() -> str:
    """`bf16 autocast` where the CPU multiplies bfloat16 itself, else `fp32`.

    Emulated bfloat16 is slower than plain fp32: 1.21 against 0.46 CPU seconds for a step of 16 x 32 tokens on
    an AVX-512 machine without avx512_bf16; with it, fp32 is the slower one by about as much.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # a young function: older torch means fp32
    native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16 autocast" if native else "fp32"


def _fit(
    encoder: Any,
    head: torch.nn.Linear,
    texts: Encoded,
    targets: Tensor,
    steps: int,
    rng: random.Random,
    progress: Callable[[int, float], None] | None,
) -> list[float]:
    """Train in place; `targets` is int64 of (rows,). Returns each step's loss in nats a row."""
    encoder.embeddings.requires_grad_(False)
    groups = [
        {"params": [p for p in encoder.parameters() if p.requires_grad], "lr": ENCODER_LR},
        {"params": list(head.parameters()), "lr": HEAD_LR},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
    )
    encoder.train()
    losses: list[float] = []
    for step, batch in zip(range(steps), _batches(len(texts), rng), strict=False):  # the batches never end
        logits = head(_features(encoder, [texts[row] for row in batch]))
        loss = torch.nn.functional.cross_entropy(logits, targets[batch])
        losses.append(descend(loss, optimizer, schedule))
        if progress:
            progress(step + 1, losses[-1])
    return losses


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> float:
    """One optimiser step with the gradient clipped to norm 1; the loss before it, in the loss's own unit."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    schedule.step()
    return loss.item()


def _batches(rows: int, rng: random.Random) -> Iterator[list[int]]:
    left: list[int] = []
    while True:
        if len(left) < BATCH:
            left = rng.sample(range(rows), rows)
        yield left[:BATCH]
        left = left[BATCH:]


def _features(encoder: Any, texts: Encoded) -> Tensor:
    """Mean of the last hidden states over the real tokens: float32 of (rows, hidden)."""
    longest = max(map(len, texts))
    ids = torch.tensor([row + [encoder.config.pad_token_id or 0] * (longest - len(row)) for row in texts])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in texts])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16 autocast"):
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)


def _encode(directory: Path, texts: list[str]) -> Encoded:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer(texts, truncation=True, max_length=MAX_TOKENS, padding=False)["input_ids"]


def _load_encoder(directory: Path) -> Any:
    from transformers import AutoModel

    with quiet_transformers():  # it would report the head's two tensors as unexpected
        return AutoModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True)


def _save(base: Path, encoder: Any, head: torch.nn.Linear, out: Path) -> None:
    """Write the base's other files, the encoder and the head under a temporary name, then rename."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".partial-") as partial:
        fresh = Path(partial) / out.name
        skipped = shutil.ignore_patterns("*.safetensors", "*.bin", "config.json", "README*", ".*")
        shutil.copytree(base, fresh, ignore=skipped)
        state = {**encoder.state_dict(), "head.weight": head.weight.detach(), "head.bias": head.bias.detach()}
        with quiet_transformers():
            encoder.save_pretrained(fresh, state_dict=state)
        fresh.rename(out)


def _read_head(directory: Path) -> tuple[Tensor, Tensor]:
    path = directory / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("head.weight").float(), file.get_tensor("head.bias").float()
    except (OSError, SafetensorError) as problem:
        raise DataError(
            f"no classifier head in {path}: {problem}",
            hint="give a directory that holds head.weight and head.bias as `head`",
        ) from problem


def _class_names(home: Path, rows: Sequence[Row], classes: int, labels: Sequence[str] | None) -> list[str]:
    if labels is None and record_path(home).is_file():
        labels = json.loads(record_path(home).read_text(encoding="utf-8"))["labels"]
    names = sorted({label for _, label in rows}) if labels is None else list(labels)
    if len(names) != classes:
        source = "the rows" if labels is None else "`labels`"
        raise DataError(
            f"the head of {home} has {classes} classes, {source} name {len(names)}",
            hint="give the names of all classes, sorted, as `labels`",
        )
    return names
