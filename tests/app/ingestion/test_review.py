import random

import pytest

from app.ingestion import review
from app.ingestion.scripts import ScriptTally
from core.datasets import Dataset
from core.holdout import HoldOut
from tests.app.ingestion.uploads import Ingestion, warnings

NOUNS = [
    "river",
    "house",
    "garden",
    "window",
    "mountain",
    "letter",
    "teacher",
    "village",
    "morning",
    "kitchen",
]
VERBS = ["opened", "painted", "remembered", "described", "followed"]
ENGLISH = [
    f"Yesterday the old {noun} was {verb} once more by all of my friends from the school."
    for noun in NOUNS
    for verb in VERBS
]
GERMAN = [
    f"Gestern haben wir die Nummer {i} in der kleinen Stadt hinter den Bergen gesehen."
    for i in range(len(ENGLISH))
]
CHINESE = [f"昨天我们在山后面的小城里看见了第{i}号房子。" for i in range(len(ENGLISH))]


def take(ingestion: Ingestion, pairs: list[tuple[str, str]]) -> Dataset:
    lines = [f'"{source}","{target}"\n' for source, target in pairs]
    return ingestion.take("prompt,completion\n" + "".join(lines))


WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("abo", "eka", "ilu", "omi", "una", "ary")]


def odd(dataset: Dataset) -> dict[str, list[int]]:
    """Without the leaks, of which made-up sentences have many."""
    return {code: lines for code, lines in warnings(dataset).items() if code != "possible_leaks"}


def test_nothing_is_odd_about_good_rows(ingestion: Ingestion) -> None:
    for targets in (GERMAN, CHINESE):
        assert odd(take(ingestion, list(zip(ENGLISH, targets, strict=True)))) == {}


def test_a_side_in_another_script_is_told(ingestion: Ingestion) -> None:
    pairs = list(zip(ENGLISH, CHINESE, strict=True))
    pairs[3] = (ENGLISH[3], "Старая дорога ведёт к морю.")
    pairs[7] = ("昨天我们看见了房子。", "昨天我们在山后面看见了一座房子。")
    pairs[9] = (ENGLISH[9], "12 + 30 = 42")  # which is in no script
    pairs[11] = (ENGLISH[11], f"{CHINESE[11]} (OK)")
    dataset = take(ingestion, pairs)
    assert odd(dataset) == {"wrong_script": [5]}
    by_side = [w.message for w in dataset.report.warnings if w.code == "wrong_script"]
    assert by_side == [
        "have a source that is not written in Latin, as others are",
        "have a target that is not written in Chinese or Japanese, as others are",
    ]


@pytest.mark.parametrize("targets", [CHINESE, GERMAN])
def test_swapped_sides_are_told(ingestion: Ingestion, targets: list[str]) -> None:
    pairs = list(zip(ENGLISH, targets, strict=True))
    pairs[4] = pairs[4][::-1]
    pairs[40] = pairs[40][::-1]
    assert odd(take(ingestion, pairs)) == {"sides_swapped": [6, 42]}


def test_another_language_is_told(ingestion: Ingestion) -> None:
    pairs = list(zip(ENGLISH, GERMAN, strict=True))
    pairs[5] = (
        ENGLISH[5],
        "Hier nous avons vu une petite maison derrière les montagnes de la ville.",
    )
    pairs[6] = (ENGLISH[6], "Oui.")  # too short to tell
    dataset = take(ingestion, pairs)
    assert odd(dataset) == {"wrong_language": [7]}


def test_of_many_rows_some_are_looked_at(
    ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "_NUM_DETECTED", 25)
    pairs = list(zip(ENGLISH, GERMAN, strict=True))
    pairs[2] = pairs[2][::-1]
    pairs[3] = pairs[3][::-1]
    dataset = take(ingestion, pairs)
    assert odd(dataset) == {"sides_swapped": [4]}
    assert "(of 25 rows looked at)" in dataset.report.warnings[0].message


def test_of_few_rows_none_is_the_exception(ingestion: Ingestion) -> None:
    pairs = list(zip(ENGLISH, CHINESE, strict=True))[:18]
    assert odd(take(ingestion, [*pairs, pairs[0][::-1]])) == {}


def test_rows_that_would_leak_into_the_evaluation_are_told(ingestion: Ingestion) -> None:
    """Of sentences each unlike all others, and one near to each."""
    draw = random.Random(3)
    sentences = [f"{' '.join(draw.choices(WORDS, k=12))} n{i}" for i in range(60)]
    near = [sentence.replace(f" n{i}", f" changed{i}") for i, sentence in enumerate(sentences)]
    prompts = sentences + near
    held = HoldOut.choose(prompts, 12)
    expected = [
        number + 2
        for number, prompt in enumerate(prompts)
        if not held.holds(prompt) and held.holds(prompts[(number + 60) % 120])
    ]
    dataset = take(ingestion, [(p, f"target {i}") for i, p in enumerate(prompts)])
    [warning] = [w for w in dataset.report.warnings if w.code == "possible_leaks"]
    assert warning.count == len(expected) > 2
    assert warning.lines == expected[:10]
    assert "one of the 12 rows" in warning.message


def test_a_lone_row_is_no_reason_to_fail(ingestion: Ingestion) -> None:
    assert warnings(take(ingestion, [("a", "b")])) == {}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Ｆｕｌｌ width", "Latin"),
        ("été", "Latin"),
        ("カタカナ", "Chinese or Japanese"),
        ("한국어", "Hangul"),
        ("ภาษาไทย", "Thai"),
        ("हिन्दी", "Devanagari"),
        ("العربية", "Arabic"),
        ("Ελληνικά x", "Greek"),
    ],
)
def test_scripts_have_names(text: str, script: str) -> None:
    tally = ScriptTally()
    for _ in range(20):
        tally.add(text, "123 …")
    found = tally.misplaced(range(20))
    assert (found.source, found.target) == (script, "")
    assert found.of_source.count == found.of_target.count == found.swapped.count == 0
