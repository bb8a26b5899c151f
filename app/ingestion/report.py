"""Collects what is found in an upload, line by line, and sums it up as a DatasetReport."""

import math
from array import array

from app.ingestion.records import Tally
from core.datasets import DatasetReport, RowError, RowWarning, TokenStatistics

MAX_ERRORS = 1000


class ReportBuilder:
    """The tallies of one upload; memory grows by eight bytes a row."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._errors: list[RowError] = []
        self._warnings: list[RowWarning] = []
        self._num_tokens = array("I")
        self._too_long = Tally()
        self._empty = 0
        self.num_errors = 0
        self.lines = array("I")  # of each row that is kept, where it begins in the upload
        self.duplicates = Tally()
        self.contradictions = Tally()
        self.copies = Tally()
        self.systems = Tally()

    def add_error(self, error: RowError) -> None:
        self.num_errors += 1
        self._empty += error.code == "empty"
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(error)

    def add_warning(self, code: str, message: str) -> None:
        """About the file as a whole."""
        self._warnings.append(RowWarning(code=code, message=message))

    def add_tally(self, tally: Tally, code: str, message: str) -> None:
        """About some rows; nothing if there are none. The message does not repeat how many and which."""
        self._warnings += _warning(tally, code, message)

    def add_row(self, line: int, num_tokens: int) -> None:
        self.lines.append(line)
        self._num_tokens.append(num_tokens)
        if num_tokens > self._max_tokens:
            self._too_long.add(line)

    def forget_tokens(self) -> None:
        self._num_tokens = array("I")
        self._too_long = Tally()

    @property
    def num_rows(self) -> int:
        return len(self.lines)

    @property
    def first_error(self) -> RowError | None:
        return self._errors[0] if self._errors else None

    def build(self) -> DatasetReport:
        return DatasetReport(
            errors=self._errors,
            warnings=[*self._warnings, *self._tallied()],
            unusable=self.num_errors,
            duplicates=self.duplicates.count,
            empty=self._empty,
            too_long=self._too_long.count,
            tokens=self._token_statistics(),
        )

    def _tallied(self) -> list[RowWarning]:
        return [
            *_warning(self.duplicates, "duplicates", "repeat an earlier row, and were dropped"),
            *_warning(
                self.contradictions,
                "contradictions",
                "give a source another target than an earlier row does",
            ),
            *_warning(self.copies, "untranslated", "have the same text as source and target"),
            *_warning(
                self._too_long,
                "too_long",
                f"have more than {self._max_tokens} tokens; a job leaves out rows longer than its "
                "training.max_length",
            ),
            *_warning(
                self.systems,
                "system_ignored",
                "have a system turn, which is ignored; a job's prompt.system sets one",
            ),
        ]

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


def _warning(tally: Tally, code: str, message: str) -> list[RowWarning]:
    """One, or none if there are no such rows."""
    found = RowWarning(code=code, message=message, count=tally.count, lines=tally.lines)
    return [found] if tally.count else []


def _quantile(ordered: list[int], share: float) -> int:
    """By nearest rank, so that it is a length that occurs."""
    return ordered[math.ceil(share * len(ordered)) - 1]
