"""Many requests at random times, some given up: every answer is that of the model alone, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random

import pytest
from serving import causal, expected, greedy, prompt, run


def test_a_hundred_requests(tmp_path_factory: pytest.TempPathFactory) -> None:
    fleet = causal(tmp_path_factory)
    homes = {**fleet.restored, "base": fleet.base}
    wanted = {(name, n): expected(homes[name], prompt(name, n), 20) for name in homes for n in (3, 17)}

    async def work() -> None:
        rng = random.Random(0)
        engine = fleet.engine(cache_bytes=600_000, max_batch=5)

        async def one(name: str, length: int, count: int, wait: float, leave: bool) -> None:
            await asyncio.sleep(wait)
            stream = engine.generate(name, prompt(name, length), greedy(count))
            found = []
            async for chunk in stream:
                if chunk.token is not None:
                    found.append(chunk.token)
                if leave and len(found) == count // 2:
                    break
            await stream.aclose()
            assert found == wanted[name, length][: len(found)]
            assert leave or len(found) == min(count, len(wanted[name, length]))

        drawn = [
            (rng.choice(sorted(homes)), rng.choice([3, 17]), rng.randint(1, 20), rng.random(), rng.random() < 0.3)
            for _ in range(100)
        ]
        await asyncio.gather(*(one(*each) for each in drawn))
        await engine.close()
        stats = engine.stats()
        assert stats["waiting"] == stats["refused"] == 0
        assert stats["cache_evictions"] > 0
        assert not engine._requests
        assert all(entry.users == 0 for entry in engine._residents._entries.values())

    run(work(), 120)
