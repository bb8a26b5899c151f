"""Collects what is found in an upload, line by line, and sums it up as a DatasetReport."""

import math
from array import array
from dataclasses import dataclass, field

from core.datasets import DatasetReport, RowError, RowWarning, TokenStatistics

MAX_ERRORS = 1000
_MAX_LINES = 10


@dataclass
class Tally:
    """How many lines have something, and which were the first."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < _MAX_LINES:
            self.lines.append(line)

    def sentence(self, one: str, many: str) -> str:
        """`one` or `many` (which holds {}), and the lines."""
        what = one if self.count == 1 else many.format(f"{self.count:,}")
        word = "line" if self.count == 1 else "lines"
        more = ", …" if self.count > len(self.lines) else ""
        return f"{what} ({word} {', '.join(map(str, self.lines))}{more})"


class ReportBuilder:
    """The tallies of one upload; memory grows by four bytes a row."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._errors: list[RowError] = []
        self._notes: list[str] = []
        self._num_tokens = array("I")
        self._too_long = Tally()
        self._empty = 0
        self.num_errors = 0
        self.duplicates = Tally()
        self.contradictions = Tally()
        self.copies = Tally()
        self.systems = Tally()

    def add_error(self, error: RowError) -> None:
        self.num_errors += 1
        self._empty += error.code == "empty"
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(error)

    def add_note(self, warning: str) -> None:
        self._notes.append(warning)

    def add_row(self, line: int, num_tokens: int) -> None:
        self._num_tokens.append(num_tokens)
        if num_tokens > self._max_tokens:
            self._too_long.add(line)

    def forget_tokens(self) -> None:
        self._num_tokens = array("I")
        self._too_long = Tally()

    @property
    def num_rows(self) -> int:
        return len(self._num_tokens)

    @property
    def first_error(self) -> RowError | None:
        return self._errors[0] if self._errors else None

    def build(self) -> DatasetReport:
        return DatasetReport(
            errors=self._errors,
            warnings=[
                RowWarning(code="note", message=w) for w in [*self._notes, *self._warnings()]
            ],
            unusable=self.num_errors,
            duplicates=self.duplicates.count,
            empty=self._empty,
            too_long=self._too_long.count,
            tokens=self._token_statistics(),
        )

    def _warnings(self) -> list[str]:
        left_out = "tokens; a job leaves out rows longer than its max_length"
        found = [
            (self.duplicates, "1 row repeats an earlier one and was dropped",
             "{} rows repeat earlier ones and were dropped"),
            (self.contradictions, "1 row gives a source another target than an earlier row does",
             "{} rows give a source another target than an earlier row does"),
            (self.copies, "1 row is not translated: source and target are the same",
             "{} rows are not translated: source and target are the same"),
            (self._too_long, f"1 row has more than {self._max_tokens} {left_out}",
             f"{{}} rows have more than {self._max_tokens} {left_out}"),
            (self.systems, "1 row has a system turn, which is ignored; a job's prompt.system sets one",
             "{} rows have a system turn, which is ignored; a job's prompt.system sets one"),
        ]  # fmt: skip
        return [tally.sentence(one, many) for tally, one, many in found if tally.count]

    def _token_statistics(self) -> TokenStatistics | None:
        if not self._num_tokens:
            return None
        ordered = sorted(self._num_tokens)
        return TokenStatistics(
            min=ordered[0],
            median=_quantile(ordered, 0.5),
            p95=_quantile(ordered, 0.95),
            max=ordered[-1],
            total=sum(ordered),
        )


def _quantile(ordered: list[int], share: float) -> int:
    """By nearest rank, so that it is a length that occurs."""
    return ordered[math.ceil(share * len(ordered)) - 1]
