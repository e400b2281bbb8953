"""Tokens stored together, and padding."""

from __future__ import annotations

import pytest
import torch

from kinfold.serve.cache.blocks import marked, marks, part, pooled, split, zeroed


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("keep", [0, 3, 7])
def test_a_block_gives_every_token_back_at_its_place(keep: int) -> None:
    pair = (random(2, 3, 7, 4), random(2, 3, 7, 4) + 1)
    basis = torch.linalg.qr(random(3, 4, 2)).Q
    at = random(2, 3, 7).argsort(-1)[..., :keep].sort(-1).values
    block = split(pair, [half @ basis for half in pair], at, 5)
    assert (block.version, block.tokens, block.at.dtype) == (5, 7, torch.int32)
    for number, half in enumerate(pair):
        found, wanted = block.half(number, basis), half @ basis @ basis.mT
        for row in range(2):
            for head in range(3):
                for token in range(7):
                    whole = token in at[row, head].tolist()
                    exact = half[row, head, token] if whole else wanted[row, head, token]
                    torch.testing.assert_close(found[row, head, token], exact, atol=0 if whole else 1e-6, rtol=0)
    assert marked(at, 7).sum() == 6 * keep


def test_padding() -> None:
    valid = torch.tensor([[False, False, True, True], [True, True, True, True]])
    half = random(2, 1, 4, 3)
    assert marks(None, half).all()
    assert torch.equal(marks(valid, half), valid)
    assert part(None, 0, 2) is None
    assert part(valid, 2, 4) is None
    first = part(valid, 0, 3)
    assert first is not None
    assert torch.equal(first, valid[:, :3])
    assert first.untyped_storage().nbytes() == 6
    assert (zeroed(half, valid)[0, 0, :2] == 0).all()
    assert torch.equal(zeroed(half, valid)[1], half[1])
    assert zeroed(half, None) is half


def test_pooling_counts_from_the_end() -> None:
    tokens = random(1, 1, 7, 2)
    found = pooled(tokens, 3)
    assert found.shape == (1, 1, 3, 2)
    torch.testing.assert_close(found[0, 0, 2], tokens[0, 0, 4:].mean(0))
    torch.testing.assert_close(found[0, 0, 0], tokens[0, 0, 0] / 3)
    padded = torch.cat([torch.zeros(1, 1, 2, 2), tokens], 2)
    torch.testing.assert_close(pooled(padded, 3), found)
    assert pooled(tokens, 1) is tokens
