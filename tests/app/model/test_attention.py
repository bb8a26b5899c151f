"""Single queries through sparse products, against the plain formula for each sequence."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from app.model.attention import SpanAttention
from app.model.step import Span

NUM_HEADS, HEAD_DIM, NUM_PLACES = 6, 16, 2000
SCALING = 0.3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_spans(lengths: Sequence[int], seed: int = 0) -> list[Span]:
    """One span of each length, somewhere in its sequence, whose regions lie in any order."""
    rng = random.Random(seed)
    positions = [rng.randrange(0, 60) for _ in lengths]
    order = rng.sample(range(len(lengths)), len(lengths))
    regions, end = {}, 0
    for i in order:
        regions[i] = end + rng.randrange(0, 5)
        end = regions[i] + positions[i] + lengths[i]
    assert end < NUM_PLACES
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [
        Span(start, length, position, regions[i])
        for i, (start, length, position) in enumerate(zip(starts, lengths, positions, strict=True))
    ]


def make_store(spans: list[Span], num_kv_heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values; NaN where no sequence has written."""
    keys, values = torch.full((2, NUM_PLACES, num_kv_heads, HEAD_DIM), torch.nan)
    for span in spans:
        own = slice(span.region_start, span.region_start + span.num_keys)
        keys[own], values[own] = torch.randn(2, span.num_keys, num_kv_heads, HEAD_DIM)
    return keys, values


def expect(
    query: Tensor, keys: Tensor, values: Tensor, spans: list[Span], window: int | None
) -> Tensor:
    """Softmax of scaled products, one query and head at a time."""
    output = torch.empty_like(query)
    group = query.shape[1] // keys.shape[1]
    for span in spans:
        for i in range(span.length):
            last = span.position + i
            first = 0 if window is None else max(0, last + 1 - window)
            seen = slice(span.region_start + first, span.region_start + last + 1)
            for head in range(query.shape[1]):
                own_keys, own_values = keys[seen, head // group], values[seen, head // group]
                scores = own_keys @ query[span.start + i, head] * SCALING
                output[span.start + i, head] = scores.softmax(0) @ own_values
    return output


@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("num_kv_heads", [6, 2])
@pytest.mark.parametrize(
    "lengths",
    [[1] * 9, [1] * 3, [1], [1, 5, 1, 1, 1, 12, 1, 1], [4, 9]],
    ids=["single queries", "few", "one", "beside prompts", "prompts"],
)
def test_equals_the_formula(lengths: list[int], num_kv_heads: int, window: int | None) -> None:
    spans = make_spans(lengths)
    keys, values = make_store(spans, num_kv_heads)
    query = torch.randn(sum(lengths), NUM_HEADS, HEAD_DIM)
    attention = SpanAttention(spans)
    for _ in range(2):  # the second layer finds what the first one made
        actual = attention(query, keys, values, scaling=SCALING, sliding_window=window)
        torch.testing.assert_close(actual, expect(query, keys, values, spans, window))


def test_layers_with_and_without_a_window_in_one_step() -> None:
    spans = make_spans([1] * 8)
    keys, values = make_store(spans, 3)
    query = torch.randn(8, NUM_HEADS, HEAD_DIM)
    attention = SpanAttention(spans)
    for window in (None, 4, None):
        actual = attention(query, keys, values, scaling=SCALING, sliding_window=window)
        torch.testing.assert_close(actual, expect(query, keys, values, spans, window))


@pytest.mark.parametrize("where", ["query", "keys", "values"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_neighbour_that_is_not_finite(where: str, value: float) -> None:
    spans = make_spans([1] * 8)
    keys, values = make_store(spans, 2)
    query = torch.randn(8, NUM_HEADS, HEAD_DIM)
    sick = spans[3]
    place = sick.region_start
    ({"query": query[3], "keys": keys[place], "values": values[place]}[where])[:] = value
    actual = SpanAttention(spans)(query, keys, values, scaling=SCALING, sliding_window=None)
    expected = expect(query, keys, values, spans, None)
    others = [i for i in range(8) if i != 3]
    torch.testing.assert_close(actual[others], expected[others])
    assert not actual[3].isfinite().all()


def test_very_large_scores_do_not_overflow() -> None:
    spans = make_spans([1] * 5)
    keys, values = make_store(spans, 6)
    query = 1000 * torch.randn(5, NUM_HEADS, HEAD_DIM)
    actual = SpanAttention(spans)(query, keys, values, scaling=SCALING, sliding_window=None)
    # Scores of some thousands are rounded to a thousandth, and that much of a weight is by chance.
    expected = expect(query, keys, values, spans, None)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-2)


def test_a_query_of_which_the_heads_are_a_part() -> None:
    """As a fused projection hands it over: not contiguous."""
    spans = make_spans([1, 1, 1, 1, 6])
    keys, values = make_store(spans, 6)
    query = torch.randn(10, 3 * NUM_HEADS, HEAD_DIM)[:, :NUM_HEADS]
    actual = SpanAttention(spans)(query, keys, values, scaling=SCALING, sliding_window=None)
    torch.testing.assert_close(actual, expect(query, keys, values, spans, None))
