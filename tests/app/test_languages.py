"""Codes, names and detection."""

import pytest

from app.languages import detect, detected_as, display_name, normalise


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("zh-Hans", "zh"),
        ("zh-hans", "zh"),
        ("zt", "zh-Hant"),
        ("pb", "pt-BR"),
        ("PB", "pt-BR"),
        ("en-x-yoda", "en-x-yoda"),
        ("lzh", "lzh"),
        ("!!", "!!"),
    ],
)
def test_normalise(code: str, expected: str) -> None:
    assert normalise(code) == expected


def test_display_name() -> None:
    assert display_name("lzh") == "Literary Chinese"
    assert display_name("en-x-yoda") == "English (yoda)"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The rain has stopped and the children are playing outside.", "en"),
        ("Der Regen hat aufgehört und die Kinder spielen draußen.", "de"),
        ("雨已经停了，孩子们在外面玩耍。", "zh"),
        ("王怒而去", "zh"),
    ],
)
def test_detect(text: str, code: str) -> None:
    best, probability = detect(text)[0]
    assert best == code
    assert 0.5 < probability <= 1


def test_classical_chinese_is_looked_for_under_what_the_detector_knows() -> None:
    assert detected_as("lzh") == detected_as("yue") == detected_as("zh-Hant") == "zh"
    assert detected_as("en-x-yoda") == "en"
