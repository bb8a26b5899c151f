import random

import pytest

from core.near_duplicates import THRESHOLD, NearDuplicates, _split

LONG = "The old fisherman walked down to the harbour before the sun came up."


@pytest.mark.parametrize(
    ("held_out", "text"),
    [
        (LONG, LONG.replace("harbour", "market")),
        (LONG, LONG.replace("old ", "")),
        (LONG, LONG.replace("old", "very old")),
        (LONG, "Before the sun came up, the OLD fisherman walked down to the harbour!"),
        (LONG, LONG),
        ("他昨天下午和朋友一起去公园散步了。", "他昨天上午和朋友一起去公园散步了。"),
        (
            "昨日の午後、友達と一緒に公園を散歩しました。",
            "今日の午後、友達と一緒に公園を散歩しました。",
        ),
        ("यह एक बहुत लंबा और सुंदर वाक्य है।", "यह एक बहुत लंबा और छोटा वाक्य है।"),
        (
            "Ｔｈｅ full-width sentence has one word changed.",
            "The full-width sentence has one word added.",
        ),
        ("Yes!", "yes"),
    ],
)
def test_finds_what_is_nearly_the_same(held_out: str, text: str) -> None:
    assert (
        NearDuplicates(["Quite another sentence, which is in the way.", held_out]).find(text)
        == held_out
    )


@pytest.mark.parametrize(
    ("held_out", "text"),
    [
        ("I like cats.", "I like dogs."),
        ("I am happy.", "I am not happy."),
        ("我喜欢猫。", "我喜欢狗。"),
        ("学而时习之", "学而不习之"),
        (LONG, LONG.replace("harbour", "market").replace("sun", "moon").replace("old", "young")),
        (LONG, LONG + " Then he came back and told us all about the fish that he had seen."),
        ("no no no no no no no", "no"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_leaves_alone_what_is_another_sentence(held_out: str, text: str) -> None:
    assert NearDuplicates([held_out]).find(text) is None


def test_of_a_long_text_the_beginning_counts() -> None:
    words = [f"w{i}" for i in range(100_000)]
    index = NearDuplicates([" ".join(words)])
    assert index.find(" ".join(words[:600])) is not None
    assert index.find(" ".join(words[300:])) is None


def test_nothing_is_near_to_nothing() -> None:
    assert NearDuplicates([]).find(LONG) is None


def test_the_index_misses_nothing() -> None:
    """Against the definition, on texts of few different words, where nearly all share some."""
    draw = random.Random(7)
    words = [f"w{i}" for i in range(12)]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 24))) for _ in range(400)]
    held_out, others = texts[:100], texts[100:]
    others += [" ".join([*draw.sample(t.split(), k=len(t.split()))[1:], "w3"]) for t in held_out]
    index = NearDuplicates(held_out)
    num_found = 0
    for text in others:
        of_text = set(_split(text))
        similarities = [
            len(of_text & set(_split(h))) / max(len(of_text), len(_split(h))) for h in held_out
        ]
        found = index.find(text)
        assert (found is not None) == (max(similarities) >= THRESHOLD)
        if found is not None:
            num_found += 1
            assert similarities[held_out.index(found)] >= THRESHOLD
    assert num_found > 50
