"""The next token of each row of a batch, drawn so that no row's draws depend on another's."""

from __future__ import annotations

import torch

from kinfold.errors import ServeError
from kinfold.serve.request import Sampling

LEAST = 1e-6  # of temperatures: below it, scores divided by it are no float32 any more, and draws are greedy anyway


def check(sampling: Sampling) -> None:
    """Refuse what no token can be drawn by.

    Raises:
        ServeError: naming the value and what is allowed.
    """
    if not 0 < sampling.top_p <= 1:
        raise ServeError(f"top_p is {sampling.top_p}; above 0, at most 1 is allowed")
    if not 0 <= sampling.temperature < float("inf"):
        raise ServeError(f"the temperature is {sampling.temperature}; 0 and finite numbers above are allowed")
    if sampling.max_tokens < 0 or (sampling.logprobs or 0) < 0:
        raise ServeError(
            f"max_tokens is {sampling.max_tokens} and logprobs {sampling.logprobs}; neither may be negative"
        )


def generator(sampling: Sampling) -> torch.Generator | None:
    """A row's own source of randomness; None where nothing is drawn."""
    if sampling.temperature < LEAST:
        return None
    made = torch.Generator()
    if sampling.seed is None:
        made.seed()
    else:
        made.manual_seed(sampling.seed & 0x7FFFFFFFFFFFFFFF)
    return made


def draw(logits: torch.Tensor, sampling: Sampling, source: torch.Generator | None) -> int:
    """One token of `logits` (vocabulary,), float32; the likeliest where there is no source of randomness.

    Nucleus sampling: Holtzman et al. (2020), arXiv 1904.09751: the fewest tokens whose mass reaches `top_p`.
    """
    if source is None:
        return int(logits.argmax())
    scores = (logits.cpu() - logits.max().cpu()) / sampling.temperature
    masses = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, places = masses.sort(descending=True, stable=True)
        beyond = ordered.cumsum(0) - ordered >= sampling.top_p
        beyond[0] = False  # also where `top_p` is 0 in float32
        masses = masses.clone()
        masses[places[beyond]] = 0
    return int(torch.multinomial(masses, 1, generator=source))


def logprobs(logits: torch.Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token, and the `count` likeliest with theirs, before temperature and top_p."""
    told = logits.float().log_softmax(-1)
    best = told.topk(min(count, told.numel()))
    return float(told[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
