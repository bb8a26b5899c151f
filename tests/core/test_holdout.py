"""Held-out rows: the same ones whenever the data is the same, twins together."""

import random

import pytest

from core.holdout import HoldOut, without_trifles

PROMPTS = [f"Sentence number {i}." for i in range(1000)]


def held(prompts: list[str], holdout: int | float) -> set[str]:
    chosen = HoldOut.choose(prompts, holdout)
    return {p for p in prompts if chosen.holds(p)}


def test_number_of_rows() -> None:
    assert len(held(PROMPTS, 62)) == 62
    assert held(PROMPTS, 0) == set()
    assert len(held(PROMPTS[:3], 200)) == 1  # at least half are left to train on
    assert held([], 10) == set()


def test_share_of_rows() -> None:
    assert 70 < len(held(PROMPTS, 0.1)) < 130


@pytest.mark.parametrize("holdout", [62, 0.1])
def test_order_does_not_matter(holdout: int | float) -> None:
    shuffled = random.Random(1).sample(PROMPTS, len(PROMPTS))
    assert held(shuffled, holdout) == held(PROMPTS, holdout)


def test_a_share_holds_out_the_same_rows_when_data_is_added() -> None:
    more = [*PROMPTS, *(f"Another one, {i}." for i in range(500))]
    assert held(PROMPTS, 0.1) == held(more, 0.1) & set(PROMPTS)


def test_twins_are_on_one_side() -> None:
    twins = [f"sentence  NUMBER {i}" for i in range(1000)]
    chosen = HoldOut.choose(PROMPTS, 100)
    assert all(chosen.holds(a) == chosen.holds(b) for a, b in zip(PROMPTS, twins, strict=True))


@pytest.mark.parametrize("holdout", [5, 0.9])
def test_twins_leave_half_to_train_on(holdout: int | float) -> None:
    assert held(["The same sentence."] * 10, holdout) == set()
    few = ["One.", "one", "ONE!", "Two.", "two", "Three."]
    chosen = HoldOut.choose(few, holdout)
    assert sum(map(chosen.holds, few)) <= 3
    assert len(held(PROMPTS, 0.9)) <= 500


def test_without_trifles() -> None:
    assert without_trifles("Ａ, b-C!") == "abc"
    assert without_trifles("学而，时习之。") == "学而时习之"
    assert without_trifles("?!") == "?!"
