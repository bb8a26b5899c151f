"""A dataset's rows -> those to train on and those to judge on, with nothing of the one in the other."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from core.datasets import Row
from core.holdout import HoldOut
from core.near_duplicates import NearDuplicates


@dataclass(frozen=True)
class Split:
    """`held_out` are in memory; `training_rows` reads the others anew at each call. `warnings` are for the job."""

    held_out: list[Row]
    training_rows: Callable[[], Iterator[Row]]
    warnings: list[str]


def split_rows(rows: Callable[[], Iterable[Row]], holdout: int | float) -> Split:
    """`rows` gives all rows at each call; `holdout` is as in EvaluationSection.

    A row that nearly equals a held-out one is neither trained on nor judged on.
    """
    if not holdout:
        return Split(
            [],
            lambda: iter(rows()),
            ["this version was not judged: evaluation.holdout is 0"],
        )
    hold_out = HoldOut.choose((row.prompt for row in rows()), holdout)
    held_out = [row for row in rows() if hold_out.holds(row.prompt)]
    if not held_out:
        return Split(
            [],
            lambda: iter(rows()),
            ["this version was not judged: the dataset is too small to hold any row out"],
        )
    leaks, num_others = _find_leaks(rows(), hold_out, held_out)
    warnings = []
    if leaks and 2 * len(leaks) > num_others:
        warnings.append(
            f"{len(leaks)} of {num_others} training rows nearly equal one that was held out; they were "
            "trained on all the same, as too few others would be left: the scores are too good"
        )
        leaks = set()
    elif leaks:
        warnings.append(
            f"{len(leaks)} of {num_others} training rows were left out: they nearly equal one that was "
            "held out for the evaluation"
        )

    def training_rows() -> Iterator[Row]:
        for number, row in enumerate(rows()):
            if number not in leaks and not hold_out.holds(row.prompt):
                yield row

    return Split(held_out, training_rows, warnings)


def _find_leaks(
    rows: Iterable[Row], hold_out: HoldOut, held_out: list[Row]
) -> tuple[set[int], int]:
    """Numbers of the rows that nearly equal a held-out one, and how many rows are not held out."""
    near = NearDuplicates(row.prompt for row in held_out)
    leaks = set()
    num_others = 0
    for number, row in enumerate(rows):
        if hold_out.holds(row.prompt):
            continue
        num_others += 1
        if any(near.find(exchange.prompt) for exchange in (row, *row.further)):
            leaks.add(number)
    return leaks, num_others
