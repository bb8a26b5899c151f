"""JSONL and JSON lists -> records, one object at a time."""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, TextIO

from app.ingestion.encoding import read_lines
from app.ingestion.formats import Format
from app.ingestion.records import (
    MAX_COLUMN_CHARS,
    MAX_LINE_CHARS,
    Record,
    Table,
    UnreadableError,
    is_encodable,
)
from core.datasets import RowError

_NUM_SAMPLED = 50  # rows whose keys are the columns; later rows are read against those
_MAX_COLUMNS = 1000
_CHUNK_CHARS = 64 * 1024
_LONGEST_TOKEN = 16  # of JSON's own: an escaped surrogate pair, -Infinity
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json(text: TextIO, file_format: Format) -> Table:
    """Raises UnreadableError if the beginning cannot be read; the records may raise it too."""
    records = _jsonl(text) if file_format is Format.JSONL else _json_list(text)
    sample = list(islice(records, _NUM_SAMPLED))
    keys = (key for row in sample if isinstance(row, Record) for key in row.values)
    names = dict.fromkeys(k for k in keys if 0 < len(k) <= MAX_COLUMN_CHARS and is_encodable(k))
    return Table(list(islice(names, _MAX_COLUMNS)), lambda _: chain(sample, records))


def _jsonl(text: TextIO) -> Iterator[Record | RowError]:
    for line, content in enumerate(read_lines(text), start=1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield RowError(line=line, code="json_syntax", message=_reason(error))
        else:
            yield _record(line, value)


def _json_list(text: TextIO) -> Iterator[Record | RowError]:
    cursor = _Cursor(text)
    cursor.expect("[")
    if cursor.next_char() == "]":
        cursor.expect("]")
    else:
        while True:
            cursor.next_char()
            yield _record(cursor.line, cursor.value())
            if cursor.next_char() != ",":
                break
            cursor.expect(",")
        cursor.expect("]")
    if cursor.next_char():
        raise UnreadableError(
            "json_syntax", "something follows the end of the list", line=cursor.line
        )


def _record(line: int, value: Any) -> Record | RowError:
    if isinstance(value, dict):
        return Record(line, value)
    return RowError(
        line=line,
        code="not_an_object",
        message='is not a JSON object such as {"prompt": "…", "completion": "…"}',
    )


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return f"is not valid JSON: {message.removesuffix(' at')}"


def _may_be_cut_off(error: Exception, length: int) -> bool:
    """Whether more text could mend `error`, found in a text of `length` characters."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    # An open string is reported where it begins, everything else where the text stops making sense.
    return error.msg.startswith("Unterminated string") or error.pos >= length - _LONGEST_TOKEN


class _Cursor:
    """A place in a JSON text that is read piece by piece, so that memory holds one element, not the list."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._position = 0
        self._ended = False
        self.line = 1

    def next_char(self) -> str:
        """Moves over white space; returns the character there, or '' at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._position)
            self._move(match.end() if match else self._position)
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._refill():
                return ""

    def expect(self, char: str) -> None:
        """Moves over `char`. Raises UnreadableError if something else stands there."""
        found = self.next_char()
        if found != char:
            what = repr(found) if found else "the end of the file"
            raise UnreadableError(
                "json_syntax", f"{what} stands where {char!r} is expected", line=self.line
            )
        self._move(self._position + 1)

    def value(self) -> Any:
        """Decodes the value that begins here and moves behind it. Raises UnreadableError."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except (ValueError, RecursionError) as error:
                if _may_be_cut_off(error, len(self._buffer)) and self._refill():
                    continue
                raise self._unreadable(error) from error
            # A number that ends about where the buffer does may go on behind it.
            if end > len(self._buffer) - _LONGEST_TOKEN and self._refill():
                continue
            self._move(end)
            return value

    def _unreadable(self, error: Exception) -> UnreadableError:
        if len(self._buffer) - self._position > MAX_LINE_CHARS and not self._ended:
            return UnreadableError(
                "line_too_long",
                f"the element is longer than {MAX_LINE_CHARS:,} characters",
                line=self.line,
            )
        position = error.pos if isinstance(error, json.JSONDecodeError) else self._position
        line = self.line + self._buffer.count("\n", self._position, position)
        return UnreadableError("json_syntax", _reason(error), line=line)

    def _move(self, position: int) -> None:
        self.line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _refill(self) -> bool:
        num_left = len(self._buffer) - self._position
        if self._ended or num_left > MAX_LINE_CHARS:
            return False
        # Doubling what is there keeps the cost of decoding again linear.
        chunk = self._text.read(max(_CHUNK_CHARS, num_left))
        if not chunk:
            self._ended = True
            return False
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0
        return True
