"""Encode and decode speed and peak memory of each codec, beside ZipNN, a plain copy and a LoRA extraction.

    python benchmarks/fleet.py --seed 0 --tasks wn
    python benchmarks/speed.py               # about 5 minutes; results/speed.json

Each row is a process of its own on the same variant, three runs, the median. Megabytes are those of the
variant's weights that differ from the base, at 16 bits: the reference size. `lora rank 128` is a full SVD of
every matrix in float32 by torch, as LoRA extraction tools do it, without their file handling. ZipNN codes the
variant alone; `exact` and XOR use the base. The bf16 rows are the same pair cast to bfloat16.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zstandard
from zipnn import ZipNN  # pyright: ignore[reportMissingImports]

import kinfold
from fleet import fleet, machine
from grid import RESULTS
from kinfold.checkpoint import Checkpoint, CheckpointWriter
from resident import peak_mb

BUDGET = "1/64"
RUNS = 3
CODECS = ("exact", "fold", "truncsvd", "osd", "bitdelta", "dare", "magnitude")
RIVALS = ("copy", "zipnn", "xor + split + zstd-3", "lora rank 128")


def changed(base: Checkpoint, variant: Checkpoint) -> list[str]:
    return [n for n in variant.tensors if n not in base.tensors or not torch.equal(variant.read(n), base.read(n))]


def time_codec(codec: str, base: Path, variant: Path, folder: Path) -> tuple[float, float, int]:
    out = folder / "pack.kin.safetensors"
    started = time.perf_counter()
    budget = {"bitdelta": "1/8", "exact": None}.get(codec, BUDGET)
    kinfold.pack(base, variant, out, codec=codec, budget=budget)
    packed = time.perf_counter()
    kinfold.restore(out, base, folder / "restored")
    return packed - started, time.perf_counter() - packed, out.stat().st_size


def time_copy(base: Path, variant: Path, folder: Path) -> tuple[float, float, int]:
    seconds = []
    for source, target in (("variant", "a"), ("a", "b")):
        path = variant / "model.safetensors" if source == "variant" else folder / source
        started = time.perf_counter()
        shutil.copyfile(path, folder / target)
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1], (folder / "b").stat().st_size


def time_zipnn(base: Path, variant: Path, folder: Path) -> tuple[float, float, int]:
    weights = Checkpoint.open(variant)
    names = changed(Checkpoint.open(base), weights)
    kind = "bfloat16" if weights.tensors[names[0]].dtype == "BF16" else "float32"
    coder = ZipNN(bytearray_dtype=kind, input_format="byte")
    raw = b"".join(weights.read(name).reshape(-1).view(torch.uint8).numpy().tobytes() for name in names)
    started = time.perf_counter()
    coded = coder.compress(bytearray(raw))  # it reorders its input in place
    middle = time.perf_counter()
    back = coder.decompress(coded)
    ended = time.perf_counter()
    if bytes(back) != raw:
        raise SystemExit("zipnn did not give the bytes back")
    return middle - started, ended - middle, len(coded)


def time_xor(base: Path, variant: Path, folder: Path) -> tuple[float, float, int]:
    one, two = Checkpoint.open(base), Checkpoint.open(variant)
    encode = decode = 0.0
    size = 0
    for name in changed(one, two):
        value = two.read(name)
        other = one.read(name) if name in one.tensors else torch.zeros_like(value)
        width = value.element_size()
        started = time.perf_counter()
        bits, base_bits = (t.reshape(-1).view(torch.uint8).numpy() for t in (value, other))
        planes = np.ascontiguousarray((bits ^ base_bits).reshape(-1, width).T).tobytes()
        coded = zstandard.ZstdCompressor(level=3).compress(planes)
        middle = time.perf_counter()
        raw = np.frombuffer(zstandard.ZstdDecompressor().decompress(coded), np.uint8).reshape(width, -1)
        back = np.ascontiguousarray(raw.T).reshape(-1) ^ base_bits
        decode += time.perf_counter() - middle
        encode += middle - started
        size += len(coded)
        if not np.array_equal(back, bits):
            raise SystemExit("xor did not give the bits back")
    return encode, decode, size


def time_lora(base: Path, variant: Path, folder: Path) -> tuple[float, float, int]:
    one, two = Checkpoint.open(base), Checkpoint.open(variant)
    names = [n for n in changed(one, two) if n in one.tensors and len(two.tensors[n].shape) == 2]
    started, size, pairs = time.perf_counter(), 0, []
    for name in names:
        delta = two.read(name).float() - one.read(name).float()
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        root = s[:128].sqrt()
        pairs.append(((u[:, :128] * root).half(), (root[:, None] * v[:128]).half()))
        size += 2 * sum(p.numel() for p in pairs[-1])
    middle = time.perf_counter()
    for name, (a, b) in zip(names, pairs, strict=True):
        one.read(name).float().add_(a.float() @ b.float())
    return middle - started, time.perf_counter() - middle, size


def measured(name: str, base: Path, variant: Path) -> dict[str, float]:
    """One run in this process; seconds, bytes, and peak memory above what importing takes."""
    rivals: dict[str, Callable[[Path, Path, Path], tuple[float, float, int]]] = dict(
        zip(RIVALS, (time_copy, time_zipnn, time_xor, time_lora), strict=True)
    )
    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        job = rivals.get(name)
        found = job(base, variant, Path(folder)) if job else time_codec(name, base, variant, Path(folder))
    return {
        "encode_seconds": found[0],
        "decode_seconds": found[1],
        "bytes": found[2],
        "peak_mb": peak_mb() - before,
    }


def as_bf16(source: Path, target: Path) -> Path:
    """The same checkpoint cast to bfloat16; integers stay."""
    weights = Checkpoint.open(source)
    target.mkdir()
    shutil.copy(source / "config.json", target)
    specs = [(n, "BF16" if i.dtype == "F32" else i.dtype, i.shape) for n, i in weights.tensors.items()]
    with CheckpointWriter(target, specs) as writer:
        for name, info in weights.tensors.items():
            value = weights.read(name)
            writer.write(name, value.bfloat16() if info.dtype == "F32" else value)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "BASE", "VARIANT"), help="measure one row in this process")
    given = parser.parse_args().one
    if given:
        print(json.dumps(measured(given[0], Path(given[1]), Path(given[2]))))
        return
    member = fleet(0, tasks=("wn",))[0]
    with tempfile.TemporaryDirectory() as folder:
        pairs = {
            "fp32": (member.base, member.directory),
            "bf16": (as_bf16(member.base, Path(folder) / "base"), as_bf16(member.directory, Path(folder) / "wn")),
        }
        rows = [row(name, kind, *pair) for kind, pair in pairs.items() for name in (*CODECS, *RIVALS)]
    content = {"machine": machine(), "kinfold": kinfold.__version__, "budget": BUDGET, "runs": RUNS, "rows": rows}
    (RESULTS / "speed.json").write_text(json.dumps(content, indent=1) + "\n")


def row(name: str, kind: str, base: Path, variant: Path) -> dict[str, object]:
    one, two = Checkpoint.open(base), Checkpoint.open(variant)
    reference = sum(2 * two.tensors[n].numel for n in changed(one, two))
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "--one", name, base, variant], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(RUNS)
    ]
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    speeds = {f"{what}_mb_s": reference / 1e6 / middle[f"{what}_seconds"] for what in ("encode", "decode")}
    found = {"name": name, "dtype": kind, "reference_bytes": reference, **middle, **speeds, "runs": runs}
    print({key: round(v, 3) if isinstance(v, float) else v for key, v in found.items() if key != "runs"}, flush=True)
    return found


if __name__ == "__main__":
    main()
