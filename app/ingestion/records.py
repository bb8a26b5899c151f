"""What the readers hand on: numbered records, and the ways in which a file can fail."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.datasets import RowError
from core.errors import ServiceError

# A text of this size is far beyond any context; it bounds what one row can cost.
MAX_FIELD_CHARS = 131_072
MAX_LINE_CHARS = 4 * 1024 * 1024
MAX_COLUMN_CHARS = 1000
_MAX_LINES = 10

_SURROGATE = re.compile("[\ud800-\udfff]")


class Record(NamedTuple):
    """One row of the upload, by column name. `line` is where it begins, counted from 1."""

    line: int
    values: dict[str, Any]


@dataclass
class Tally:
    """How many lines have something, and which were the first."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < _MAX_LINES:
            self.lines.append(line)


@dataclass(frozen=True)
class Table:
    """A file's columns in order, and its rows; a faulty row comes as a RowError.

    `read` takes the columns that are wanted, and may leave out others. `sides` are source and target where the
    file itself says which they are. `has` tells whether a column may be named, if not by its exact name alone.
    `left_out` are rows without fault or use, as far as they have been read.
    """

    columns: list[str]
    read: Callable[[list[str]], Iterator[Record | RowError]]
    sides: tuple[str, str] | None = None
    has: Callable[[str], bool] | None = None
    left_out: Tally = field(default_factory=Tally)


class UnreadableError(Exception):
    """The file as a whole cannot be read, or not from this line on; on_error=skip does not help."""

    def __init__(
        self, code: str, message: str, *, line: int = 1, column: str | None = None
    ) -> None:
        super().__init__(message)
        self.fault = RowError(line=line, column=column, code=code, message=message)


class FaultyRowError(Exception):
    """One row cannot be used; the rows around it can."""

    def __init__(self, code: str, message: str, column: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.column = column


class UnsupportedFormatError(ServiceError):
    """The file is of a kind that is not read here."""

    status_code = 415
    code = "unsupported_format"


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold `text`: JSON can spell half of a surrogate pair, which it cannot."""
    return text.isascii() or not _SURROGATE.search(text)


def printable(text: str, max_chars: int = 100) -> str:
    """`text` cut to a length fit for messages, and fit for UTF-8."""
    text = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")
