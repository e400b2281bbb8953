"""Fields and presets of OjaKV."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kinfold.errors import CacheError
from kinfold.serve.cache import OjaKVConfig
from kinfold.serve.cache.lowrank_config import PRESETS


def test_presets() -> None:
    found = {name: OjaKVConfig.preset(name) for name in PRESETS}
    assert set(found) == {"default", "static", "hybrid", "v1", "v2", "v2-pf"}
    assert found["default"] == OjaKVConfig()
    static, hybrid = found["static"], found["hybrid"]
    assert (static.sink_tokens, static.recent_tokens, static.whole_tokens, static.decode_keep) == (0, 0, 0, 0)
    assert static.eta_prefill == static.eta_decode == hybrid.eta_prefill == hybrid.eta_decode == 0
    assert hybrid.whole_tokens == OjaKVConfig().whole_tokens
    v1, v2 = found["v1"], found["v2"]
    assert (v1.keep, v1.sink_tokens, v1.recent_tokens, v1.whole_tokens) == ("positional", 32, 32, 0)
    for paper in (v1, v2, found["v2-pf"]):
        assert (paper.update, paper.eta_prefill, paper.prefill_steps, paper.eta_decode) == ("published", 0.1, 1, 0.05)
    assert (v2.keep, v2.query_weight, v2.pool, v2.prefill) == ("residual", True, 4, "reconstructed")
    assert found["v2-pf"] == v2.model_copy(update={"prefill": "full"})
    assert OjaKVConfig.preset("v1", pool=2).pool == 2


def test_mistakes() -> None:
    with pytest.raises(CacheError, match="no preset `v3`; there are default, static"):
        OjaKVConfig.preset("v3")
    with pytest.raises(ValidationError, match="at most recent_tokens"):
        OjaKVConfig(query_weight=True, recent_tokens=8)
    for wrong in ({"sink_tokens": -1}, {"whole_tokens": 1.5}, {"eta_decode": -0.1}, {"pool": 0}, {"version": 2}):
        with pytest.raises(ValidationError):
            OjaKVConfig(**wrong)


def test_whole_tokens_are_a_number_or_a_share() -> None:
    assert isinstance(OjaKVConfig.model_validate({"whole_tokens": "64"}).whole_tokens, int)
    assert OjaKVConfig.model_validate({"whole_tokens": ".1"}).whole_tokens == 0.1
