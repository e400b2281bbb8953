"""A Llama wired by hand that looks a key's value up in its context: no training, exact, milliseconds a prompt.

Layer 0 copies the previous token's code, layer 1 finds the token that follows the asked one. Tokens: BOS, ".", "?",
96 keys, 64 values, 32 fillers. Benchmarks import this module too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

BOS, STOP, ASK = 0, 1, 2
KEYS, VALUES, FILLERS = range(3, 99), range(99, 163), range(163, 195)
_VOCABULARY, _CODE, _BASE = 195, 32, 1e10


class Asked(NamedTuple):
    """A prompt (1, n) int64 that ends with `? KEY`, and the value's token that answers it."""

    ids: torch.Tensor
    answer: int


def wired_llama(attention: str = "sdpa") -> Any:
    """The model: 2 layers, 4 query heads, 2 KV heads of 64, 253,312 weights, most of them zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": _BASE},
        tie_word_embeddings=False,
        rms_norm_eps=1e-8,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=STOP,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval()
    code = torch.randint(0, 2, (_VOCABULARY, _CODE), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embedding = model.model.embed_tokens.weight
        embedding[:, :_CODE], embedding[:, 96] = code, 1.0
        _previous_token(model.model.layers[0].self_attn, math.sqrt(128 / 33))
        _match(model.model.layers[1].self_attn, math.sqrt(128 / 65))
        model.lm_head.weight[:, 64:96] = code
    return model


def _previous_token(attention: Any, norm: float) -> None:
    one = torch.eye(_CODE)
    for i in range(8):
        angle = _BASE ** (-2 * i / 64)
        attention.k_proj.weight[i, 96] = 1 / norm
        attention.q_proj.weight[i, 96] = 400 * math.cos(angle) / norm
        attention.q_proj.weight[i + 32, 96] = -400 * math.sin(angle) / norm
    attention.v_proj.weight[:32, :32] = one / norm
    attention.o_proj.weight[32:64, :32] = one


def _match(attention: Any, norm: float) -> None:
    one = torch.eye(_CODE)
    slow = [*range(16, 32), *range(48, 64)]  # rotary pairs that hardly turn
    attention.k_proj.weight[slow, 32:64] = one / norm
    attention.q_proj.weight[slow, :32] = 8 * one / norm
    attention.v_proj.weight[:32, :32] = one / norm
    attention.o_proj.weight[64:96, :32] = one


def context(
    sentences: int, generator: torch.Generator, keys: range = KEYS
) -> tuple[torch.Tensor, list[int], list[int]]:
    """BOS and `sentences` times `F F K V .`: int64 (1, 1 + 5 sentences), the keys and their values in order."""
    chosen = [keys[i] for i in torch.randperm(len(keys), generator=generator)[:sentences].tolist()]
    values = [VALUES[i] for i in torch.randint(len(VALUES), (sentences,), generator=generator).tolist()]
    tokens = [BOS]
    for key, value in zip(chosen, values, strict=True):
        fillers = torch.randint(len(FILLERS), (2,), generator=generator).tolist()
        tokens += [*(FILLERS[i] for i in fillers), key, value, STOP]
    return torch.tensor([tokens]), chosen, values


def asked(sentences: int, count: int, seed: int, keys: range = KEYS) -> Iterator[Asked]:
    """`count` prompts, each a context and a question about one of its keys."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids, chosen, values = context(sentences, generator, keys)
        number = int(torch.randint(sentences, (1,), generator=generator))
        yield Asked(torch.cat([ids, torch.tensor([[ASK, chosen[number]]])], 1), values[number])


def calibration_texts() -> list[torch.Tensor]:
    """Four contexts of 12 sentences on the first 16 keys only: another domain than `shifted`."""
    generator = torch.Generator().manual_seed(5)
    return [context(12, generator, KEYS[:16])[0] for _ in range(4)]


def shifted(count: int) -> Iterator[Asked]:
    """Prompts of 24 sentences on the keys that `calibration_texts` lacks."""
    return asked(24, count, 11, KEYS[16:])
