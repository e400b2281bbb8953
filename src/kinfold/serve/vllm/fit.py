"""What a running server cannot take from a variant: a config of its own, tensors of other shapes, other texts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kinfold.pack.member import Base, Member
from kinfold.tasks import quiet_transformers

# settings that say nothing of how hidden states are computed
_IDLE = {
    "architectures",
    "attn_implementation",
    "dtype",
    "id2label",
    "initializer_range",
    "label2id",
    "num_labels",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_TEXTS = ("added_tokens", "chat_template", "merges", "special_tokens", "tokenizer", "vocab")


def config_changes(variant: Member) -> list[str]:
    """Settings of `config.json` that the variant computes by and the base has otherwise; sorted."""
    own, there = variant.files().get("config.json"), _side(variant.base, "config.json")
    if own is None or there is None or own == there:
        return []
    return sorted(_changed(_settings(there), _settings(own), ""))


def _changed(base: Mapping[str, Any], own: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for key in base.keys() & own.keys():
        a, b = base[key], own[key]
        if key in _IDLE or key.startswith("_") or key.endswith("_token_id") or "dropout" in key:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += _changed(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(prefix + key)
    return found


@lru_cache(maxsize=16)
def _settings(config: bytes) -> Mapping[str, Any]:
    """With the defaults of transformers, for one file may leave out what another spells; else as written."""
    import transformers

    with tempfile.TemporaryDirectory(prefix="kinfold-") as folder, quiet_transformers():
        (Path(folder) / "config.json").write_bytes(config)
        try:
            return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
        except Exception:  # whatever a config of unknown origin makes a class raise
            return json.loads(config)


def text_changes(variant: Member) -> list[str]:
    """The variant's own tokenizer files and chat templates; a server uses the base's for all. Sorted."""
    files = variant.files()
    return sorted(path for path, data in files.items() if path.startswith(_TEXTS) and _side(variant.base, path) != data)


def _side(base: Base, path: str) -> bytes | None:
    file = base.checkpoint.directory / path
    return file.read_bytes() if file.is_file() else None
