"""The law of sampled tokens, and rows that must not harm each other."""

from collections import Counter

import pytest
import torch

from app.engine.sampling import Sampler, choose_likeliest
from app.engine.sequence import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])


def params(**values: float) -> SamplingParams:
    return SamplingParams(1, frozenset(), **values)  # type: ignore[arg-type]


def sample(
    sampler: Sampler, logits: torch.Tensor, rows: list[SamplingParams], keys: list[int]
) -> list[int]:
    return sampler.draw(logits, choose_likeliest(logits).wait(), rows, keys)


def draw(count: int = 4000, **values: float) -> Counter[int]:
    sampler = Sampler()
    torch.manual_seed(0)
    rows = [params(**{"seed": i, **values}) for i in range(count)]
    return Counter(sample(sampler, LOGITS.expand(count, -1), rows, list(range(count))))


def test_temperature_gives_the_softmax_law() -> None:
    counts = draw(temperature=0.7)
    expected = torch.softmax(LOGITS / 0.7, 0)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_top_k_keeps_k_tokens() -> None:
    counts = draw(temperature=2.0, top_k=2)
    assert set(counts) == {0, 1}
    assert counts[1] / 4000 == pytest.approx(1 / (1 + 2.718281828**0.5), abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # softmax(LOGITS) = 0.64, 0.24, 0.09, 0.03, 0.00
    assert set(draw(temperature=1.0, top_p=0.6)) == {0}
    assert set(draw(temperature=1.0, top_p=0.7)) == {0, 1}
    assert set(draw(temperature=1.0, top_p=0.95)) == {0, 1, 2}
    assert set(draw(temperature=1.0, top_p=1e-9)) == {0}


@pytest.mark.parametrize("values", [{}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1e-30}])
def test_greedy_in_every_way_to_ask_for_it(values: dict[str, float]) -> None:
    assert set(draw(200, **values)) == {0}


def test_a_seed_repeats_and_goes_on() -> None:
    def tokens() -> list[int]:
        sampler = Sampler()
        row = params(temperature=1.0, seed=5)
        return [sample(sampler, LOGITS[None], [row], [1])[0] for _ in range(30)]

    first = tokens()
    assert first == tokens()
    assert len(set(first)) > 1, "each step must draw anew"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_told_apart_from_its_neighbours(bad: float) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 3] = bad
    rows = [params(), params(temperature=1.0), params(temperature=1.0, seed=1)]
    tokens = sample(Sampler(), logits, rows, [1, 2, 3])
    assert tokens[1] == -1
    assert tokens[0] == 0
    assert tokens[2] >= 0


def test_no_rows() -> None:
    assert sample(Sampler(), torch.zeros(0, 5), [], []) == []
