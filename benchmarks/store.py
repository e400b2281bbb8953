"""A store in a folder: speed of `add` and `get` against a plain copy, and what twenty checkpoints of one run take.

    python benchmarks/store.py               # two minutes, 2 GB of disk; results/store.json

The run is synthetic: a Llama of 36 million weights in bfloat16, embeddings frozen, of which every step of training
moves all other tensors. A plain copy reads, writes and syncs the same files.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from safetensors.torch import load_file, save_file

import kinfold
from fleet import machine, run_script
from grid import RESULTS
from kinfold.store import Store

CHECKPOINTS, REPEATS, STEP = 20, 5, 1e-4
SHAPE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "vocab_size": 32000}


def first_checkpoint(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True, **SHAPE)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "step00")
    return folder / "step00"


def next_checkpoint(before: Path, number: int) -> Path:
    """The same with noise on all tensors but the embeddings."""
    out = before.with_name(f"step{number:02}")
    shutil.copytree(before, out)
    generator = torch.Generator().manual_seed(number)
    tensors = load_file(before / "model.safetensors")
    for name, tensor in tensors.items():
        if "embed_tokens" not in name:
            noise = torch.randn(tensor.shape, generator=generator) * STEP
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plain_copy(source: Path, out: Path) -> None:
    """Copy every file and sync it, as a store does."""
    shutil.copytree(source, out)
    for path in [*out.rglob("*"), out]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def speed(folder: Path, model: Path) -> dict[str, dict[str, float]]:
    """Median MB/s of each, alternating, so that all see the same machine."""
    times: dict[str, list[float]] = {"copy": [], "add": [], "add again": [], "get": []}
    for number in range(REPEATS):
        here = folder / f"repeat{number}"
        here.mkdir()
        store = Store.init(here / "store", cache=here / "cache")
        calls: dict[str, Callable[[], object]] = {
            "copy": lambda here=here: plain_copy(model, here / "copy"),
            "add": lambda store=store: store.add(model, name="m"),
            "add again": lambda store=store: store.add(model, name="n"),
            "get": lambda store=store, here=here: store.get("m", here / "out"),
        }
        for name, call in calls.items():
            times[name].append(seconds(call))
        shutil.rmtree(here)
    total = size(model) / 1e6
    return {
        name: {"mb_per_second": total / statistics.median(values), "least": total / max(values)}
        for name, values in times.items()
    }


def deduplication(folder: Path, checkpoints: list[Path], packs: list[Path]) -> list[dict[str, object]]:
    """Bytes of the files of each series, and of the objects that hold them."""
    rows: list[dict[str, object]] = []
    for label, paths in {"checkpoints": checkpoints, "exact packs and the first checkpoint": packs}.items():
        store = Store.init(folder / f"store-{len(rows)}", cache=folder / "cache")
        added = [store.add(path, name=path.name.split(".")[0]) for path in paths]
        objects = sum(one.new_bytes for one in added)
        files = sum(one.bytes for one in added)
        all_bytes = size(Path(store.url))
        rows.append({"series": label, "file_bytes": files, "object_bytes": objects, "store_bytes": all_bytes})
        rows[-1]["ratio_to_checkpoints"] = sum(map(size, checkpoints)) / all_bytes
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = [first_checkpoint(folder)]
        for number in range(1, CHECKPOINTS):
            checkpoints.append(next_checkpoint(checkpoints[-1], number))
        measured = speed(folder, checkpoints[0])
        print(measured, flush=True)
        packs = [checkpoints[0]]
        for path in checkpoints[1:]:
            packs.append(folder / f"{path.name}.kin.safetensors")
            kinfold.pack(checkpoints[0], path, packs[-1], codec="exact")
        rows = deduplication(folder, checkpoints, packs)
        content = {
            "machine": machine(),
            "kinfold": kinfold.__version__,
            "checkpoints": CHECKPOINTS,
            "checkpoint_bytes": size(checkpoints[0]),
            "step": STEP,
            "speed": measured,
            "deduplication": rows,
        }
    (RESULTS / "store.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
