"""Peak memory of packing a synthetic 2.2 GB sharded checkpoint, and a kill in the middle.

    python benchmarks/memory.py              # about half an hour and 5 GB of disk; results/memory.json

The shapes are TinyLlama's (22 layers, hidden 2048): every tensor of the variant differs from the base. The
figure is the peak resident set of `kinfold.pack` above a process that has imported torch and kinfold only.
The killed run is stopped by SIGKILL after a third of its tensors, then run again. Checkpoints and finished rows
are in the cache until the end, so a killed benchmark goes on where it was.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import kinfold
from fleet import machine
from grid import RESULTS
from kinfold.checkpoint import CheckpointWriter
from kinfold.demo.sources import cache_dir

LAYERS, HIDDEN, KEYS, FFN, VOCABULARY = 22, 2048, 256, 5632, 32000
LIMIT_MB = 600
CODECS = ("exact", "fold", "truncsvd", "dare", "magnitude", "osd")
KILLED = "truncsvd"  # `osd` would take far longer, through the same spool

CHILD = """
import sys, torch, kinfold
from resident import peak_mb
before = peak_mb()
kinfold.pack(sys.argv[1], sys.argv[2], sys.argv[3], codec=sys.argv[4])
print(before, peak_mb())
"""


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q", HIDDEN), ("k", KEYS), ("v", KEYS), ("o", HIDDEN)):
            found[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        for name in ("gate", "up"):
            found[f"{prefix}.mlp.{name}_proj.weight"] = (FFN, HIDDEN)
        found[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, FFN)
        found[f"{prefix}.input_layernorm.weight"] = (HIDDEN,)
    return found | {"lm_head.weight": (VOCABULARY, HIDDEN)}


def build(base: Path, variant: Path) -> None:
    """Write both checkpoints, bf16, in shards of 500 MB."""
    specs = [(name, "BF16", shape) for name, shape in shapes().items()]
    generator = torch.Generator().manual_seed(0)
    for directory in (base, variant):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(
            json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
        )
    with (
        CheckpointWriter(base, specs, shard_bytes=500_000_000) as one,
        CheckpointWriter(variant, specs, shard_bytes=500_000_000) as two,
    ):
        for name, _, shape in specs:
            weight = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
            one.write(name, weight)
            two.write(name, (weight.float() + 3e-4 * torch.randn(shape, generator=generator)).bfloat16())


def unfinished(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def peak(base: Path, variant: Path, out: Path, codec: str) -> dict[str, float]:
    shutil.rmtree(unfinished(out), ignore_errors=True)  # else a part of the work would be measured
    out.unlink(missing_ok=True)
    started = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, base, variant, out, codec],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    before, after = map(float, child.stdout.split())
    seconds = time.perf_counter() - started
    return {
        "above_interpreter_mb": after - before,
        "interpreter_mb": before,
        "seconds": seconds,
        "pack_bytes": out.stat().st_size,
    }


def killed(base: Path, variant: Path, out: Path, codec: str) -> None:
    """Kill the first run after a third of its units, then run to the end."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-c", CHILD, base, variant, out, codec]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
    journal = unfinished(out) / "journal"
    while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < len(shapes()) // 3):
        time.sleep(0.05)
    if child.poll() is not None:
        raise SystemExit("the run ended before it could be killed")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)


def main() -> None:
    root = cache_dir() / "memory"
    base, variant, measured = root / "base", root / "variant", root / "rows.json"
    if not measured.exists():
        build(base, variant)
        measured.write_text("{}")
    rows = json.loads(measured.read_text())
    packs = {name: root / f"{name}.kin.safetensors" for name in (*CODECS, "killed")}
    for codec in CODECS:
        if codec not in rows:
            rows[codec] = peak(base, variant, packs[codec], codec)
            measured.write_text(json.dumps(rows))
        print(codec, rows[codec], flush=True)
    killed(base, variant, packs["killed"], KILLED)
    hashes = [hashlib.sha256(packs[name].read_bytes()).hexdigest() for name in (KILLED, "killed")]
    content = {
        "machine": machine(),
        "kinfold": kinfold.__version__,
        "checkpoint_bytes": sum(path.stat().st_size for path in base.glob("*.safetensors")),
        "largest_tensor_bytes": 2 * VOCABULARY * HIDDEN,
        "limit_mb": LIMIT_MB,
        "rows": rows,
        "same_bytes_after_kill": hashes[0] == hashes[1],
    }
    (RESULTS / "memory.json").write_text(json.dumps(content, indent=1) + "\n")
    print("same bytes after a kill:", hashes[0] == hashes[1])
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
