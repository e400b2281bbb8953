"""A step that fails ends the requests in it and nothing else."""

from __future__ import annotations

import asyncio

import pytest
from serving import Fleet, causal, chunks, expected, greedy, prompt, run, tokens

from kinfold.serve import encode, generate


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return causal(tmp_path_factory)


def test_a_failed_step(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        engine = fleet.engine()

        def breaks(*given: object) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(generate.Batcher, "_forward", breaks)
            patch.setattr(encode.Encoder, "_encode", breaks)
            for asked in (tokens(engine, "full", [1, 2], greedy(3)), engine.embed("full", [[1, 2]])):
                with pytest.raises(RuntimeError, match="out of memory"):
                    await asked
        assert await tokens(engine, "full", [1, 2], greedy(3)) == expected(fleet.restored["full"], [1, 2], 3)
        await engine.close()

    run(work())


def test_long_prompts_are_read_in_pieces_beside_running_rows(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "STEP_TOKENS", 16)
    sizes: list[int] = []
    forward = generate.Batcher._forward

    def watched(self: generate.Batcher, requests, ids, *rest):
        sizes.append(ids.numel())
        return forward(self, requests, ids, *rest)

    monkeypatch.setattr(generate.Batcher, "_forward", watched)

    async def work() -> None:
        engine = fleet.engine(max_batch=4)
        asked = {"full": 70, "lora": 9, "svd": 7, "base": 50, "head": 8, "norms": 31}
        found = await asyncio.gather(*(tokens(engine, name, prompt(name, n), greedy(12)) for name, n in asked.items()))
        for (name, length), answer in zip(asked.items(), found, strict=True):
            home = {**fleet.restored, "base": fleet.base}[name]
            assert answer == expected(home, prompt(name, length), 12), name
        await engine.close()

    run(work())
    assert max(sizes) <= 16
    assert len(sizes) > 20


def test_stop_texts_end_answers(fleet: Fleet) -> None:
    async def work() -> None:
        engine = fleet.engine()
        free = "".join([c.text for c in await chunks(engine, "full", prompt("t", 6), greedy(30, ignore_eos=True))])
        stop = free[len(free) // 2 : len(free) // 2 + 3]
        cut = await chunks(engine, "full", prompt("t", 6), greedy(30, ignore_eos=True, stop=(stop,)))
        assert "".join(chunk.text for chunk in cut) == free[: free.index(stop)]
        assert cut[-1].finish == "stop"
        await engine.close()

    run(work())
