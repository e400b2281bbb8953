"""What `fold` is made of, part by part: each way to spend the same bits on the encoder matrices of two fine-tunes.

    python benchmarks/fleet.py --seed 0 --tasks wn movie
    python benchmarks/fold_parts.py          # about 10 CPU minutes; results/fold_parts.json

The figure is the divergence that is left: KL(variant || coded) / KL(variant || bare base), over 300 test rows, with
everything but the encoder's matrices kept exactly. Bits are ideal code lengths (empirical entropies), without a file
around them; a ratio is 16 bits a weight over the coded bits.
"""

import json
import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from safetensors.torch import load_file

from fleet import Member, fleet, machine
from grid import RESULTS
from kinfold.codec import create
from kinfold.codec.entropy import entropy_bits
from kinfold.codec.lowrank import leading
from kinfold.tasks import Task, divergence

ROWS = 300
Way = Callable[[torch.Tensor, int], tuple[torch.Tensor, float]]  # (delta, seed) -> decoded delta, bits


class Bench:
    """A fine-tune, its encoder matrices, and how far a coded model is from it."""

    def __init__(self, member: Member) -> None:
        self.task = Task.load(member.directory)
        base = load_file(member.base / "model.safetensors")
        own = self.task.parameters([n for n in load_file(member.directory / "model.safetensors") if "encoder" in n])
        self.tensors = {n: p for n, p in own.items() if p.dim() == 2}
        self.parameters = {n: p.data for n, p in self.tensors.items()}
        self.base = {n: base[n].float() for n in self.parameters}
        self.deltas = {n: p - self.base[n] for n, p in self.parameters.items()}
        texts = [{"text": text} for text, _ in random.Random(5).sample(member.test, ROWS)]
        self.batches = self.task.batches(texts)
        self.wanted = [self.task.outputs(ids) for ids in self.batches]
        self.rms = math.sqrt(sum(float(d.square().sum()) for d in self.deltas.values()) / self.weights)
        self.bare = self.divergence({n: torch.zeros_like(d) for n, d in self.deltas.items()})

    @property
    def weights(self) -> int:
        return sum(d.numel() for d in self.deltas.values())

    def place(self, decoded: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.base[name] + decoded[name])

    def divergence(self, decoded: dict[str, torch.Tensor]) -> float:
        self.place(decoded)
        return sum(
            float(divergence(target, self.task.outputs(ids), True)) * len(ids) / ROWS
            for ids, target in zip(self.batches, self.wanted, strict=True)
        )

    def measure(self, way: Way) -> dict[str, float]:
        coded = {name: way(delta, seed) for seed, (name, delta) in enumerate(self.deltas.items())}
        bits = sum(b for _, b in coded.values())
        left = self.divergence({name: decoded for name, (decoded, _) in coded.items()}) / self.bare
        return {"ratio": 16 * self.weights / bits, "divergence_left": left}


def entropy(q: torch.Tensor) -> float:
    flat = q.reshape(-1).int().numpy()
    return entropy_bits(flat, np.zeros(flat.size, np.int64), 1)


def low_rank(delta: torch.Tensor, step: float) -> tuple[torch.Tensor, float]:
    """U S and V S rounded to one step with dead zone .6, singular values refitted: the entropy-coded low-rank part."""
    factors = leading(delta, min(delta.shape))
    scaled = [(f * factors.s / step).float() for f in (factors.u, factors.v)]
    a, c = (torch.where(x.abs() < 0.6, 0.0, x.round()) for x in scaled)
    alive = a.any(0) & c.any(0)
    a, c = a[:, alive], c[:, alive]
    if not a.shape[1]:
        return torch.zeros_like(delta), 0.0
    gram, right = (a.T @ a) * (c.T @ c), ((a.T @ delta) * c.T).sum(1)
    sigma = torch.linalg.lstsq(gram.double(), right.double()[:, None]).solution[:, 0].float()
    bits = sum(entropy(f[:, k]) for f in (a, c) for k in range(f.shape[1]))
    return (a * sigma) @ c.T, bits + 16 * a.shape[1]


def signs(delta: torch.Tensor, rate: float, seed: int) -> tuple[torch.Tensor, float]:
    """Signs under a seeded mask, times mean |D| / density."""
    mask = torch.rand(delta.shape, generator=torch.Generator().manual_seed(seed)) < rate
    return mask * delta.sign() * (delta.abs().mean() / rate), float(mask.sum())


def threshold(delta: torch.Tensor, sigmas: float) -> tuple[torch.Tensor, float]:
    """After a random rotation of both sides: signs of the entries above a threshold, places entropy-coded."""
    left, right = (
        torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n)))[0] for n in delta.shape
    )
    turned = left @ delta @ right
    mask = turned.abs() > sigmas * turned.std()
    amplitude = turned.square().sum() / (turned.abs() * mask).sum()
    bits = entropy(mask) + float(mask.sum())
    return left.T @ (mask * turned.sign() * amplitude) @ right.T, bits


def rounded(delta: torch.Tensor, step: float, seed: int | None) -> tuple[torch.Tensor, float]:
    """Every entry to a multiple of the step; with a seed, under subtractive dither."""
    if seed is None:
        q = (delta / step).round()
        return q * step, entropy(q)
    u = torch.rand(delta.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    q = (delta / step + u).round()
    q_mirrored = torch.where(u < 0, -q, q).reshape(-1).int().numpy()
    return (q - u) * step, entropy_bits(q_mirrored, (u.abs() * 16).long().clamp_max(7).reshape(-1).numpy(), 8)


def codebook(delta: torch.Tensor, rate: float, seed: int) -> tuple[torch.Tensor, float]:
    codec = create("fold", {"shrink": 0})
    payload = codec.encode(delta, budget_bits=int(rate * delta.numel()) // 8 * 8, seed=seed)
    return codec.decode(payload, tuple(delta.shape)), 8.0 * len(payload.data)


def after(delta: torch.Tensor, step: float, way: Way, seed: int) -> tuple[torch.Tensor, float]:
    """The low-rank part, and another way for what it leaves."""
    low, bits = low_rank(delta, step)
    rest, more = way(delta - low, seed)
    return low + rest, bits + more


def ways(rms: float) -> Iterator[tuple[str, Way]]:
    for step in (4, 6, 8):
        yield f"low rank, step {step}", lambda d, s, step=step: low_rank(d, step * rms)
    for rate in (0.12, 0.06, 0.03, 0.0075):
        yield f"signs, {rate} bits", lambda d, s, rate=rate: signs(d, rate, s)
        yield f"codebook, {rate} bits", lambda d, s, rate=rate: codebook(d, rate, s)
    for step, rate in ((8, 0.08), (8, 0.03)):
        for name, way in (("signs", signs), ("codebook", codebook)):
            rest = lambda d, s, rate=rate, way=way: way(d, rate, s)  # noqa: E731
            yield (
                f"low rank, step {step}, then {name}, {rate} bits",
                (lambda d, s, step=step, rest=rest: after(d, step * rms, rest, s)),
            )
    yield "rotated, above 2.8 sigma", lambda d, s: threshold(d, 2.8)
    yield "codebook, 0.5 bits", lambda d, s: codebook(d, 0.5, s)
    for step in (1.0, 2.0, 4.0):
        yield f"rounded, step {step}", lambda d, s, step=step: rounded(d, step * rms, None)
        yield f"dithered, step {step}", lambda d, s, step=step: rounded(d, step * rms, s)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for member in fleet(0):
        if member.task not in ("wn", "movie"):
            continue
        bench = Bench(member)
        for label, way in ways(bench.rms):
            rows.append({"task": member.task, "way": label, **bench.measure(way)})
            print(rows[-1], flush=True)
    content = {"machine": machine(), "rows": rows}
    (RESULTS / "fold_parts.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
