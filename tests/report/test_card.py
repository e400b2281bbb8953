"""The card beside a restored model."""

from __future__ import annotations

from typing import Any

from kinfold.report.card import card

FACTS: dict[str, Any] = {
    "variant": "movie",
    "base": "minilm",
    "base_fingerprint": "ab" * 32,
    "pack": "movie.kin.safetensors",
    "pack_hash": "cd" * 32,
    "file_bytes": 213_000,
    "reference_bytes": 21_300_000,
    "codec": "osd",
    "lossless": False,
    "forced": False,
    "created_by": "kinfold 0.1.0",
    "left_out": [],
}


def test_card_tells_where_it_came_from() -> None:
    text = card(**FACTS)
    assert "1/100 of the 16-bit size" in text
    assert "ab" * 32 in text
    assert "with loss" in text
    assert "Warning" not in text


def test_card_warns_of_a_forced_base_and_lists_what_is_missing() -> None:
    text = card(**FACTS | {"forced": True, "lossless": True, "left_out": ["optimizer.pt"]})
    assert "Warning: restored with --force" in text
    assert "bit-exact" in text
    assert "`optimizer.pt`" in text
