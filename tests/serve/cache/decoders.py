"""Tiny random decoders whose attention is sharp enough that what is read matters."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 97
KINDS = ("llama", "qwen3", "mistral", "hybrid")


def decoder(kind: str = "llama", attention: str = "sdpa", seed: int = 0) -> Any:
    """One of `KINDS`: 2 layers (hybrid: 4, every second with a sliding window of 16), 4 heads, 2 KV heads of 16."""
    import transformers

    name = {"llama": "Llama", "qwen3": "Qwen3", "mistral": "Mistral", "hybrid": "Qwen3"}[kind]
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": attention,
    }
    if kind == "mistral":
        settings["sliding_window"] = None
    if kind == "hybrid":
        layers = ["full_attention", "sliding_attention"] * 2
        settings |= {"num_hidden_layers": 4, "layer_types": layers, "sliding_window": 16, "use_sliding_window": True}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
        for layer in model.model.layers:  # attention that looks at few tokens, not at all alike
            layer.self_attn.q_proj.weight.mul_(3.0)
    return model


def prompt(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    """int64 (rows, tokens), no padding among them."""
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows (n,) of different lengths, padded on the left with 0."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    return {"input_ids": ids, "attention_mask": mask}
