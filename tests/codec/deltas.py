"""Deltas and codec settings that the tests of this room share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kinfold.codec import Codec, Importance, create

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"truncsvd-{w}": ("truncsvd", {"value_bits": w}) for w in (32, 16, 8, 4)},
    "fold": ("fold", {}),
    "fold-shrink": ("fold", {"shrink": 0.1}),
    "osd": ("osd", {}),
    **{f"osd-{w}": ("osd", {"value_bits": w}) for w in (32, 16, 8, 4, 3, 2)},
    "osd-c4": ("osd", {"extra_rank": 4}),
    "osd-mag-right": ("osd", {"score": "mag", "split": "right"}),
    "osd-paper": ("osd", {"layout": "paper"}),
    "osd-paper-c2-half-left": ("osd", {"layout": "paper", "extra_rank": 2, "select": "half", "split": "left"}),
    "osd-paper-fisher": ("osd", {"layout": "paper", "score": "fisher"}),
    "osd-taylor": ("osd", {"score": "taylor", "value_bits": 8}),
    **{f"bitdelta-{m}": ("bitdelta", {"planes": m}) for m in (1, 3)},
    **{f"dare-{w}": ("dare", {"value_bits": w}) for w in (16, 8, 4, 1)},
    "dare-keep": ("dare", {"value_bits": 8, "keep": 0.05}),
    "magnitude": ("magnitude", {}),
    **{f"magnitude-{w}": ("magnitude", {"value_bits": w}) for w in (16, 8, 4, 1)},
    **{f"magnitude-tensor-{w}": ("magnitude", {"value_bits": w, "scope": "tensor"}) for w in ("auto", 4)},
    **{f"rtn-{w}": ("rtn", {"value_bits": w}) for w in (8, 4)},
}


def make(setting: str) -> Codec:
    name, options = SETTINGS[setting]
    return create(name, options)


def gauss(*shape: int, seed: int = 0, scale: float = 0.01) -> torch.Tensor:
    """Independent normal entries: a flat spectrum."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_spectrum(n: int, d: int, sigma: np.ndarray, seed: int = 0) -> torch.Tensor:
    """A float64 matrix with exactly these singular values."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((n, sigma.size)))[0]
    v = np.linalg.qr(rng.standard_normal((d, sigma.size)))[0]
    return torch.from_numpy((u * sigma) @ v.T)


def decaying(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """float32, each singular value nine tenths of the one before."""
    return with_spectrum(n, d, 0.9 ** np.arange(min(n, d)), seed).float()


def importance(shape: tuple[int, ...], seed: int = 9) -> Importance:
    matrix = (shape[0], int(np.prod(shape[1:])))
    return Importance(gradient=gauss(*matrix, seed=seed), fisher=gauss(*matrix, seed=seed + 1) ** 2)


def relative_error(delta: torch.Tensor, restored: torch.Tensor) -> float:
    exact = delta.double().numpy()
    return float(np.linalg.norm(restored.double().numpy() - exact) / np.linalg.norm(exact))
