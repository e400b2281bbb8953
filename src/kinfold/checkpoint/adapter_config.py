"""What an `adapter_config.json` says, and which adapters it rules out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfold.errors import AdapterError

CONFIG = "adapter_config.json"

_MERGE = "merge the adapter into its base with PEFT (`merge_and_unload`), and give the merged model directory"
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REFUSED = {  # a setting that is set -> why its delta is not A C^T on the base's tensors
    "use_dora": ("DoRA rescales whole rows by a norm of base and factors together", _MERGE),
    "layer_replication": ("it adapts a base with repeated layers", "repeat the layers in the base first"),
    "trainable_token_indices": ("single rows of the embedding are trained", _MERGE),
    "target_parameters": ("bare parameters, such as fused experts, are adapted", _MERGE),
    "alora_invocation_tokens": ("aLoRA acts only after its invocation tokens", "serve it with PEFT or vLLM"),
    "use_qalora": ("QA-LoRA averages groups of its inputs", _MERGE),
    "use_bdlora": ("BD-LoRA has block-diagonal factors", _MERGE),
    "arrow_config": ("Arrow routes between several adapters", "give the adapters one by one"),
    "kasa_config": ("KaSA changes the base's weights", _MERGE),
    "monteclora_config": ("MonteCLoRA samples its factors", _MERGE),
}


@dataclass(frozen=True)
class Settings:
    """The part of a LoRA config that the delta depends on.

    Attributes:
        rank, alpha: r and lora_alpha where no pattern says otherwise.
        rank_pattern, alpha_pattern: regular expressions over module names, the first that fits wins.
        rslora: scaling is alpha / sqrt(r), not alpha / r.
        transposed: `fan_in_fan_out`.
        bias: `none`, `all` or `lora_only`: which of the model's own biases were trained.
        modules_to_save: names or ends of names of modules kept whole.
        base: `base_model_name_or_path`, empty where there is none.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    transposed: bool
    bias: str
    modules_to_save: tuple[str, ...]
    base: str

    def scale(self, module: str) -> tuple[int, float]:
        """(r, scaling) of a module by its full name."""
        rank = _by_pattern(self.rank_pattern, module, self.rank)
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that fits a module: the whole name, or what follows a dot (`get_pattern_key`)."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_config(directory: Path) -> Settings:
    """Read and judge `adapter_config.json`.

    Raises:
        AdapterError: it cannot be read, or describes an adapter whose delta is not A C^T.
    """
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as cause:
        raise AdapterError(f"cannot read `{path}`: {cause}", hint=f"ls {directory}") from cause
    if not isinstance(config, dict):
        raise AdapterError(f"`{path}` is no JSON object")
    _refuse(directory, config)
    try:
        return _settings(config)
    except (TypeError, ValueError, re.error) as cause:
        raise AdapterError(f"`{path}` is no valid LoRA config: {cause}") from cause


def _refuse(directory: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(
            f"`{directory}` is an adapter of type {kind}; only LORA is read",
            hint="PEFT's `save_as_lora` turns many other types into LoRA, or merge it into its base",
        )
    for name, (why, hint) in _REFUSED.items():
        if config.get(name):
            raise AdapterError(f"`{directory}` has `{name}` set: {why}, so it is no plain low-rank delta", hint=hint)
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGED_BASE):
        raise AdapterError(
            f"`{directory}` was started with `init_lora_weights={start}` and belongs to a base changed by it",
            hint="convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=INITIAL)",
        )


def _settings(config: Mapping[str, Any]) -> Settings:
    patterns = {name: config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name, pattern in patterns.items():
        if not isinstance(pattern, dict):
            raise ValueError(f"{name} must map module names to numbers")
        for key in pattern:
            re.compile(key)
    ranks = [config.get("r", 8), *patterns["rank_pattern"].values()]
    if not all(type(rank) is int and 0 < rank < 1 << 31 for rank in ranks):
        raise ValueError("a rank must be a positive integer")
    alphas = [config.get("lora_alpha", 8), *patterns["alpha_pattern"].values()]
    if not all(type(alpha) in (int, float) and math.isfinite(alpha) for alpha in alphas):
        raise ValueError("lora_alpha must be a finite number")
    kept = config.get("modules_to_save") or []
    if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
        raise ValueError("modules_to_save must be a list of names")
    return Settings(
        rank=ranks[0],
        alpha=alphas[0],
        rank_pattern=patterns["rank_pattern"],
        alpha_pattern=patterns["alpha_pattern"],
        rslora=bool(config.get("use_rslora")),
        transposed=bool(config.get("fan_in_fan_out")),
        bias=str(config.get("bias") or "none"),
        modules_to_save=tuple(kept),
        base=str(config.get("base_model_name_or_path") or ""),
    )


def write_config(
    directory: Path, base: str, ranks: Mapping[str, int], *, saved: Iterable[str], bias: bool, transposed: bool
) -> int:
    """Write an `adapter_config.json` in which every scaling is 1; returns r, the largest rank.

    Args:
        directory: the adapter's folder.
        base: what `base_model_name_or_path` shall say.
        ranks: of each adapted module, by its full name.
        saved: full names of the modules kept whole.
        bias: lora_B has a bias everywhere.
        transposed: some module stores its weight as (in, out), as GPT-2's Conv1D does.
    """
    largest = max(ranks.values())
    pattern = {name: rank for name, rank in ranks.items() if rank != largest}
    if any(_by_pattern(pattern, name, largest) != rank for name, rank in ranks.items()):
        # a short name would also fit as the end of a longer one: name all, the longest first
        pattern = {name: ranks[name] for name in sorted(ranks, key=lambda name: (-len(name), name))}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(saved) or None,
        "lora_bias": bias,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2), "utf-8")
    return largest
