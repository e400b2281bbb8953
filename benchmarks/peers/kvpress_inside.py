"""Runs in kvpress's own environment, started by kvpress_reference.py: what its presses keep, and the next logits.

    python kvpress_inside.py FOLDER

FOLDER has `model/`, `ids.safetensors` (`prompt` int64 (1, n), `next` int64 (1, 1)) and `jobs.json`, a list of
{"press", "options"}. Writes `out.safetensors`: `J.kept` int64 (layers, heads, kept) places in order, `J.logits`
(vocabulary,) of the token after `next`.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def places(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """(H, k) int64, sorted: the tokens whose keys (H, k, d) these are among (H, n, d)."""
    same = (kept[:, :, None, :] == whole[:, None, :, :]).all(-1)
    assert bool((same.sum(-1) == 1).all()), "a key is not of the prompt, or of two of its tokens"
    return same.long().argmax(-1).sort(-1).values


@torch.no_grad()
def run(model: Any, ids: dict[str, torch.Tensor], press: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept places (layers, H, k) and logits (vocabulary,)."""
    from transformers import DynamicCache

    prompt, count = ids["prompt"], ids["prompt"].shape[1]
    whole: Any = DynamicCache()
    cache: Any = DynamicCache()
    model(prompt, past_key_values=whole)
    with press(model):
        model(prompt, past_key_values=cache)
    kept = [places(a.keys[0], b.keys[0]) for a, b in zip(cache.layers, whole.layers, strict=True)]
    logits = model(ids["next"], past_key_values=cache, position_ids=torch.tensor([[count]])).logits[0, -1]
    return torch.stack(kept), logits


def main() -> None:
    import kvpress  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    folder = Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    ids, out = load_file(folder / "ids.safetensors"), {}
    for number, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        kept, logits = run(model, ids, getattr(kvpress, job["press"])(**job["options"]))
        out |= {f"{number}.kept": kept.contiguous(), f"{number}.logits": logits.contiguous()}
    save_file(out, folder / "out.safetensors")
    print(json.dumps({name: importlib.metadata.version(name) for name in ("kvpress", "transformers", "torch")}))


if __name__ == "__main__":
    main()
