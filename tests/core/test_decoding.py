"""Which texts are given to a model, and how long its answer may be."""

import pytest

from core.decoding import default_max_new_tokens, has_words


@pytest.mark.parametrize("text", ["a", "3", "学", "… é …", "\nok"])
def test_words(text: str) -> None:
    assert has_words(text)


@pytest.mark.parametrize("text", ["", " \n", "…", "?!", "🙂"])
def test_no_words(text: str) -> None:
    assert not has_words(text)


def test_room_for_an_answer() -> None:
    assert [default_max_new_tokens(n) for n in (0, 16, 17, 100)] == [64, 64, 68, 400]
