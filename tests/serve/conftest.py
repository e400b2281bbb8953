"""Ready servers over a fake engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes import FakeEngine, served


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with served(engine) as address:
        yield address
