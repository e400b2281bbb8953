"""A family of three variants, and factors whose products are their deltas."""

from __future__ import annotations

import pytest
import torch
from merge_family import Factors, Family

from kinfold.family.merge import registry


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a test registers are forgotten after it."""
    registry.find("ties")
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


@pytest.fixture(scope="session")
def factors() -> Factors:
    """Pairs A (20, r), C (30, r) of ranks 2, 5 and 3, float64."""
    generator = torch.Generator().manual_seed(4)
    sides = [(2, 1.0), (5, 0.3), (3, 2.0)]
    return [
        (
            scale * torch.randn(20, rank, generator=generator, dtype=torch.float64),
            torch.randn(30, rank, generator=generator, dtype=torch.float64),
        )
        for rank, scale in sides
    ]
