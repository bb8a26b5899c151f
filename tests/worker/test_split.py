"""What is judged on was not trained on."""

import random

from core.datasets import Exchange, Row
from core.near_duplicates import NearDuplicates
from worker.split import Split, split_rows

_DRAW = random.Random(1)
# Twelve words each, no two alike.
ROWS = [
    Row(prompt=" ".join(f"word{_DRAW.randrange(500)}" for _ in range(12)), completion=f"answer {i}")
    for i in range(100)
]


def split(rows: list[Row], holdout: int | float) -> tuple[Split, list[Row]]:
    made = split_rows(lambda: iter(rows), holdout)
    training = list(made.training_rows())
    assert training == list(made.training_rows())  # as often as one likes
    return made, training


def test_each_row_is_on_one_side() -> None:
    made, training = split(ROWS, 20)
    assert len(made.held_out) == 20
    assert made.warnings == []
    assert sorted([*made.held_out, *training], key=ROWS.index) == ROWS


def test_near_duplicates_of_held_out_rows_are_left_out() -> None:
    made, _ = split(ROWS, 20)
    leak = Row(prompt=f"{made.held_out[0].prompt} indeed", completion="a leak")
    inside = Row(
        prompt="Quite another beginning",
        completion="yes",
        further=(Exchange(prompt=f"{made.held_out[1].prompt} indeed", completion="a leak"),),
    )
    fine = Row(prompt="One more which resembles nothing", completion="fine")
    again, training = split([*ROWS, leak, inside, fine], 20)
    near = NearDuplicates(row.prompt for row in again.held_out)
    assert not any(near.find(e.prompt) for row in training for e in (row, *row.further))
    assert fine in [*training, *again.held_out]
    (warning,) = again.warnings
    assert "training rows were left out: they nearly equal one that was held out" in warning


def test_rows_that_are_all_alike_are_trained_on() -> None:
    sentence = "the old fisherman walked down to the quiet harbour before the sun came up on day"
    rows = [Row(prompt=f"{sentence} {i}", completion="x") for i in range(40)]
    made, training = split(rows, 10)
    assert (len(made.held_out), len(training)) == (10, 30)
    (warning,) = made.warnings
    assert warning.startswith(
        "30 of 30 training rows nearly equal one that was held out; they were trained on"
    )


def test_nothing_is_held_out() -> None:
    made, training = split(ROWS, 0)
    assert (made.held_out, training) == ([], ROWS)
    assert made.warnings == ["this version was not judged: evaluation.holdout is 0"]


def test_too_few_rows() -> None:
    rows = [Row(prompt="The same.", completion=str(i)) for i in range(8)]
    for few in (ROWS[:1], rows):
        made, training = split(few, 5)
        assert (made.held_out, training) == ([], few)
        assert made.warnings == [
            "this version was not judged: the dataset is too small to hold any row out"
        ]
