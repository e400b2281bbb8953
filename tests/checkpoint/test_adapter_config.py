"""Ranks and scalings by pattern, as PEFT finds them; what is refused is in test_adapter.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft.utils.other import get_pattern_key

from kinfold.checkpoint.adapter_config import read_config, write_config

MODULES = ["layers.0.up", "up", "x.up", "down", "layers.0.down", "own", "sup", "layers.12.up"]
PATTERNS = {r"layers\.\d+\.up": 3, "up": 5, "own": 7, "down|up": 9, "layers": 11}


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_are_regular_expressions_and_the_first_wins(tmp_path: Path, rslora: bool) -> None:
    alphas = {name: 2 * rank for name, rank in reversed(PATTERNS.items())}
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "rank_pattern": PATTERNS,
        "alpha_pattern": alphas,
        "use_rslora": rslora,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    settings = read_config(tmp_path)
    for module in MODULES:
        rank = PATTERNS.get(get_pattern_key(list(PATTERNS), module), 2)
        alpha = alphas.get(get_pattern_key(list(alphas), module), 6)
        assert settings.scale(module) == (rank, alpha / (rank**0.5 if rslora else rank))


def test_written_patterns_fit_no_longer_name(tmp_path: Path) -> None:
    ranks = {"dense": 1, "a.dense": 2, "b.dense": 2, "b.a.dense": 1}
    assert write_config(tmp_path, "base", ranks, saved=["norm"], bias=True, transposed=False) == 2
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    for module, rank in ranks.items():
        assert config["rank_pattern"].get(get_pattern_key(config["rank_pattern"], module), 2) == rank
    settings = read_config(tmp_path)
    assert {module: settings.scale(module) for module in ranks} == {
        module: (rank, 1.0) for module, rank in ranks.items()
    }
    assert settings.base == "base"
    assert settings.modules_to_save == ("norm",)
