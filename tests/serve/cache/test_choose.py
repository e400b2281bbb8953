from __future__ import annotations

import numpy as np
import pytest
import torch

from kinfold.serve.cache import choose

ROWS, HEADS, GROUP, SIZE = 2, 2, 3, 8


def snapkv(query: np.ndarray, key: np.ndarray, scaling: float, kernel: int) -> np.ndarray:
    """Scores (n - w) of one row and KV head, no padding, in float64: query (group, w, d), key (n, d)."""
    window, total = query.shape[1], len(key)
    scores = query.astype(np.float64) @ key.astype(np.float64).T * scaling
    for place in range(window):
        scores[:, place, total - window + place + 1 :] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    summed = weights.sum(1).mean(0)[: total - window]
    reach = kernel // 2
    return np.array([summed[max(0, i - reach) : i + reach + 1].max() for i in range(len(summed))])


@pytest.mark.parametrize("kernel", [1, 5, 7])
def test_importance_is_snapkvs_score(kernel: int) -> None:
    generator = torch.Generator().manual_seed(kernel)
    query = torch.randn(ROWS, HEADS * GROUP, 6, SIZE, generator=generator)
    key = torch.randn(ROWS, HEADS, 50, SIZE, generator=generator)
    valid = torch.ones(ROWS, 50, dtype=torch.bool)
    valid[1, :13] = False
    found = choose.importance(query, key, valid, 0.7, kernel)
    assert found.shape == (ROWS, HEADS, 44)
    for row, start in enumerate([0, 13]):
        for head in range(HEADS):
            own = query[row, head * GROUP : (head + 1) * GROUP].numpy()
            wanted = snapkv(own, key[row, head, start:].numpy(), 0.7, kernel)
            np.testing.assert_allclose(found[row, head, start:].numpy(), wanted, rtol=1e-5, atol=1e-7)
    assert bool((found[1, :, :13] == -1).all())


def test_a_window_as_long_as_the_prompt_leaves_nothing_to_score() -> None:
    query, key = torch.randn(1, 2, 5, SIZE), torch.randn(1, 2, 5, SIZE)
    assert choose.importance(query, key, torch.ones(1, 5, dtype=torch.bool), 1.0, 7).shape == (1, 2, 0)


def test_padding_in_the_window_lends_no_weight() -> None:
    query, key = torch.randn(1, 2, 4, SIZE), torch.randn(1, 2, 9, SIZE)
    valid = torch.arange(9)[None] >= 7  # two real tokens, window of four
    assert bool((choose.importance(query, key, valid, 1.0, 3) == -1).all())


def test_kept_are_the_best_and_the_window_and_earlier_tokens_win_ties() -> None:
    scores = torch.tensor([[[0.5, 0.9, 0.5, -1.0, 0.5, 0.9]]])
    assert choose.kept(scores, 2, 6).tolist() == [[[0, 1, 2, 5, 6, 7]]]
    assert choose.kept(scores, 2, 3).tolist() == [[[1, 6, 7]]]
    assert choose.kept(scores, 2, 8).tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7]]]


def test_padding_is_kept_only_when_no_real_token_is_left() -> None:
    scores = torch.tensor([[[-1.0, -1.0, 0.0, 0.0, 0.3]]])
    assert choose.kept(scores, 1, 4).tolist() == [[[2, 3, 4, 5]]]
    assert choose.kept(scores, 1, 5).tolist() == [[[0, 2, 3, 4, 5]]]


def test_ends_are_counted_over_real_tokens() -> None:
    valid = torch.tensor([[False, True, True, False, True, True, True, False]])
    assert choose.ends(valid, 1, 2).tolist() == [[False, True, False, False, False, True, True, False]]
    assert choose.ends(valid, 0, 0).sum() == 0
    assert torch.equal(choose.ends(valid, 9, 0), valid)


def test_kept_ends_fill_short_rows_with_padding() -> None:
    valid = torch.arange(8)[None] >= torch.tensor([[0], [6]])
    assert choose.kept_ends(valid, 2, 5).tolist() == [[0, 1, 5, 6, 7], [0, 1, 2, 6, 7]]


def test_ranks_put_absent_sentences_last_and_earlier_ones_first_in_a_tie() -> None:
    means = torch.tensor([[[[1.0, 0], [3, 0], [9, 9], [3, 5], [-2, 0]]]])
    present = torch.tensor([[[True, True, False, True, True]]])
    assert choose.rank(means, present, torch.tensor([[[1.0, 0.0]]])).tolist() == [[[2, 0, 4, 1, 3]]]


def test_selected_takes_the_last_sentence_in_part() -> None:
    ranks = torch.tensor([[[1, 0, 2]]])  # sentence 2 is the running one
    sentence = torch.tensor([[[0, 0, 0, 1, 1, 2, 2, 2]]])
    valid = torch.ones(1, 1, 8, dtype=torch.bool)
    always = torch.zeros_like(valid)
    always[..., 7] = True
    assert choose.selected(ranks, sentence, valid, always, 5).tolist() == [[[0, 1, 3, 4, 7]]]
    assert choose.selected(ranks, sentence, valid, always, 7).tolist() == [[[0, 1, 2, 3, 4, 5, 7]]]
    valid[..., 3] = False
    assert choose.selected(ranks, sentence, valid, always, 7).tolist() == [[[0, 1, 2, 4, 5, 6, 7]]]


def test_keys_of_the_order_do_not_overflow() -> None:
    """Rank times entries is beyond 32 bits."""
    entries = 70_000
    sentence = torch.arange(entries)[None, None]
    ranks = (entries - 1 - sentence).clone()
    valid = torch.ones(1, 1, entries, dtype=torch.bool)
    found = choose.selected(ranks, sentence, valid, torch.zeros_like(valid), 3)
    assert found.tolist() == [[[entries - 3, entries - 2, entries - 1]]]


def test_new_tokens_see_what_is_valid_and_each_other_causally() -> None:
    valid = torch.tensor([[[True, False, True, True]]])
    assert choose.visible(valid, 2).tolist() == [[[[True, False, True, False], [True, False, True, True]]]]
