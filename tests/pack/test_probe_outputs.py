"""What is told of a variant's answers to the probe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import kinfold
from kinfold.pack.probe import probe_ids, probe_outputs, probe_pack
from models import Pair


def test_ids_are_the_same_everywhere() -> None:
    assert probe_ids(300) == probe_ids(300)
    assert probe_ids(300, 1) != probe_ids(300)
    assert all(0 <= token < 7 for token in probe_ids(7))
    assert len(probe_ids(7)) == 16


def test_outputs_of_a_causal_model(llama_pair: Pair, tmp_path: Path) -> None:
    told = probe_outputs(llama_pair.variant, top=5)
    model = AutoModelForCausalLM.from_pretrained(llama_pair.variant, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = model(torch.tensor([told["ids"]])).logits[0, -1].log_softmax(-1)
    assert [token for token, _ in told["top"]] == wanted.topk(5).indices.tolist()
    assert [value for _, value in told["top"]] == pytest.approx(wanted.topk(5).values.tolist(), abs=1e-5)
    kinfold.pack(llama_pair.base, llama_pair.variant, tmp_path / "p", codec="exact")
    assert probe_pack(tmp_path / "p", llama_pair.base) == probe_outputs(llama_pair.variant)


def test_outputs_of_an_encoder(bert_pair: Pair) -> None:
    told = probe_outputs(bert_pair.variant, seed=3, top=4)
    assert told["ids"] == probe_ids(160, 3)
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(bert_pair.variant, dtype=torch.float32).eval()(torch.tensor([told["ids"]]))
    mean = hidden.last_hidden_state[0].mean(0)
    assert [mean[place].item() for place, _ in told["top"]] == pytest.approx([v for _, v in told["top"]], abs=1e-5)
    assert [place for place, _ in told["top"]] == mean.abs().topk(4).indices.tolist()
