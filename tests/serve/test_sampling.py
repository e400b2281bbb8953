import math
from collections import Counter

import pytest
import torch

from kinfold.errors import ServeError
from kinfold.serve import sampling
from kinfold.serve.request import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def test_no_temperature_takes_the_likeliest() -> None:
    drawn = Sampling(temperature=0)
    assert sampling.generator(drawn) is None
    assert sampling.draw(LOGITS, drawn, None) == 0


@pytest.mark.parametrize(
    ("top_p", "allowed"), [(1.0, {0, 1, 2, 3}), (0.81, {0, 1, 2}), (0.8, {0, 1}), (0.5, {0}), (0.01, {0})]
)
def test_the_nucleus_is_the_fewest_tokens_whose_mass_reaches_top_p(top_p: float, allowed: set[int]) -> None:
    drawn = Sampling(top_p=top_p, seed=1)
    source = sampling.generator(drawn)
    counts = Counter(sampling.draw(LOGITS.double(), drawn, source) for _ in range(2000))
    assert set(counts) == allowed
    mass = sum([0.5, 0.3, 0.15, 0.05][token] for token in allowed)
    assert counts[0] / 2000 == pytest.approx(0.5 / mass, abs=0.05)


def test_temperature_flattens() -> None:
    drawn = Sampling(temperature=2.0, seed=3)
    source = sampling.generator(drawn)
    counts = Counter(sampling.draw(LOGITS, drawn, source) for _ in range(4000))
    roots = [math.sqrt(mass) for mass in (0.5, 0.3, 0.15, 0.05)]
    assert [counts[token] / 4000 for token in range(4)] == pytest.approx([r / sum(roots) for r in roots], abs=0.03)


def test_a_tiny_temperature_is_greedy_and_overflows_nothing() -> None:
    drawn = Sampling(temperature=1e-30, seed=0)
    assert sampling.draw(LOGITS, drawn, sampling.generator(drawn)) == 0


def test_seeds() -> None:
    def drawn(seed: int | None) -> list[int]:
        source = sampling.generator(Sampling(seed=seed))
        return [sampling.draw(LOGITS, Sampling(), source) for _ in range(40)]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)
    assert drawn(None) != drawn(None)
    assert drawn(-1) == drawn(-1)


def test_logprobs() -> None:
    own, best = sampling.logprobs(LOGITS + 3, 2, 2)
    assert own == pytest.approx(math.log(0.15), abs=1e-6)
    assert [token for token, _ in best] == [0, 1]
    assert [value for _, value in best] == pytest.approx([math.log(0.5), math.log(0.3)], abs=1e-6)
    assert len(sampling.logprobs(LOGITS, 0, 20)[1]) == 4


@pytest.mark.parametrize(
    "changes", [{"top_p": 0.0}, {"top_p": 1.1}, {"temperature": -1.0}, {"temperature": math.inf}, {"logprobs": -1}]
)
def test_impossible_values(changes: dict[str, float]) -> None:
    with pytest.raises(ServeError):
        sampling.check(Sampling(**changes))


@pytest.mark.parametrize("changes", [{"temperature": 1e-46}, {"temperature": 1.0, "top_p": 1e-46}])
def test_values_that_float32_has_no_number_for(changes: dict[str, float]) -> None:
    given = Sampling(seed=0, **changes)  # type: ignore[arg-type]
    assert sampling.draw(torch.tensor([0.5, 3.0, 1.0]), given, sampling.generator(given)) == 1
