"""Models that the cache tests share; tests must leave them as they are."""

from __future__ import annotations

from typing import Any

import pytest
from wired import calibration_texts, wired_llama

from kinfold.serve.cache import KVBasis, calibrate


@pytest.fixture(scope="session")
def wired() -> Any:
    return wired_llama()


@pytest.fixture(scope="session")
def wired_basis(wired: Any) -> KVBasis:
    """All 64 directions, in order; of the calibration texts, whose keys the tests do not ask for."""
    return calibrate(wired, calibration_texts(), ratio=1.0)
