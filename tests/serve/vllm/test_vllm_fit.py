"""What a running server cannot take from a variant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kinfold.pack.member import Base
from kinfold.pack.members import open_member
from kinfold.serve.vllm.fit import config_changes, text_changes
from models import llama, pico, save

BASE = llama(tie_word_embeddings=False).config.to_dict()


def changed(tmp_path: Path, base: dict[str, Any], own: dict[str, Any]) -> list[str]:
    tensors = pico()
    save(tmp_path / "base", tensors)
    save(tmp_path / "own", tensors)
    for name, config in (("base", base), ("own", own)):
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return config_changes(open_member(tmp_path / "own", Base.open(tmp_path / "base")))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"rms_norm_eps": 1e-3}, ["rms_norm_eps"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["rope_parameters.rope_theta"]),
        ({"transformers_version": "1.0", "dtype": "bfloat16", "use_cache": False, "pad_token_id": 3}, []),
        ({"attention_dropout": 0.5, "_name_or_path": "elsewhere"}, []),
    ],
)
def test_only_what_is_computed_by_counts(tmp_path: Path, change: dict[str, Any], found: list[str]) -> None:
    assert changed(tmp_path, BASE, BASE | change) == found


def test_a_default_left_out_is_no_change(tmp_path: Path) -> None:
    """Two releases of transformers spell the same config differently."""
    short = {key: BASE[key] for key in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")}
    short |= {key: BASE[key] for key in ("num_attention_heads", "num_key_value_heads", "vocab_size")}
    short |= {"max_position_embeddings": 64, "tie_word_embeddings": False}
    assert changed(tmp_path, short, BASE) == []


def test_unknown_architectures_are_compared_as_written(tmp_path: Path) -> None:
    assert changed(tmp_path, {"model_type": "pico", "width": 3}, {"model_type": "pico", "width": 4}) == ["width"]


def test_no_config_is_no_change(tmp_path: Path) -> None:
    tensors = pico()
    for name in ("base", "own"):
        save(tmp_path / name, tensors)
        (tmp_path / name / "config.json").unlink()
    assert config_changes(open_member(tmp_path / "own", Base.open(tmp_path / "base"))) == []


def test_texts(tmp_path: Path) -> None:
    tensors = pico()
    for name in ("base", "own"):
        save(tmp_path / name, tensors)
        (tmp_path / name / "tokenizer.json").write_text("{}")
    variant = open_member(tmp_path / "own", Base.open(tmp_path / "base"))
    assert text_changes(variant) == []
    (tmp_path / "own" / "chat_template.jinja").write_text("x")
    (tmp_path / "own" / "tokenizer.json").write_text('{"a": 1}')
    variant = open_member(tmp_path / "own", Base.open(tmp_path / "base"))
    assert text_changes(variant) == ["chat_template.jinja", "tokenizer.json"]
