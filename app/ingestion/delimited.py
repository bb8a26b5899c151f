"""CSV (RFC 4180, line breaks in quotes included) and TSV -> records. The first line names the columns."""

import csv
from collections.abc import Iterator
from itertools import chain
from typing import TextIO

from app.ingestion.encoding import read_lines
from app.ingestion.formats import Format
from app.ingestion.records import MAX_COLUMN_CHARS, Record, Table, UnreadableError, printable
from core.datasets import RowError

_SNIFFED_CHARS = 10_000
_DELIMITERS = ",;\t"  # spreadsheets of half the world write CSV with semicolons

# A row's first line, and its fields or what is wrong with it.
_Numbered = Iterator[tuple[int, list[str] | RowError]]


def read_delimited(text: TextIO, file_format: Format) -> Table:
    """Raises UnreadableError where there is no usable header; the records may raise it too."""
    lines = read_lines(text)
    # Blank lines before the header must still count.
    skipped = []
    first = ""
    for first in lines:
        if first.strip():
            break
        skipped.append(first)
    delimiter = "\t" if file_format is Format.TSV else _likely_delimiter(first)
    whole = chain(skipped, [first], lines)
    rows = _split_tsv(whole) if delimiter == "\t" else _split_csv(whole, delimiter)
    line, header = next(rows, (1, []))
    if isinstance(header, RowError):
        raise UnreadableError(header.code, f"in the header: {header.message}", line=header.line)
    names = [name.strip() for name in header]
    _check_header(names, line)
    return Table([name for name in names if name], lambda _: _records(rows, names))


def _likely_delimiter(header: str) -> str:
    sample = [header[:_SNIFFED_CHARS]]
    return max(_DELIMITERS, key=lambda d: len(next(csv.reader(sample, delimiter=d))))


def _check_header(names: list[str], line: int) -> None:
    if not any(names):
        raise UnreadableError(
            "empty_file", "the file is empty; the first line must name the columns", line=line
        )
    seen: set[str] = set()
    for name in filter(None, names):
        if len(name) > MAX_COLUMN_CHARS:
            raise UnreadableError(
                "column_name_too_long",
                f"the header names a column {printable(name, 40)!r} of {len(name):,} characters; "
                f"at most {MAX_COLUMN_CHARS:,} are accepted",
                line=line,
            )
        if name in seen:
            raise UnreadableError(
                "duplicate_column",
                f"the header names the column {printable(name)!r} twice; each needs its own name",
                line=line,
                column=printable(name),
            )
        seen.add(name)


def _records(rows: _Numbered, names: list[str]) -> Iterator[Record | RowError]:
    width = len(names)
    for line, fields in rows:
        if isinstance(fields, RowError):
            yield fields
            continue
        if len(fields) > width and not any(fields[width:]):
            fields = fields[:width]  # delimiters left at the end of a line hold nothing
        if len(fields) == width:
            yield Record(line, dict(zip(names, fields, strict=True)))
            continue
        few = len(fields) < width
        yield RowError(
            line=line,
            code="missing_columns" if few else "extra_columns",
            message=f"has {len(fields)} fields, but the header names {width} columns; "
            "a text that holds the delimiter or a line break must stand in double quotes",
        )


def _split_csv(lines: Iterator[str], delimiter: str) -> _Numbered:
    # strict: otherwise a quote left open would swallow the rest of the file without a word.
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The reader goes on at the next line. That is the next row, unless this one had several.
            if reader.line_num > line or "unexpected end" in str(error):
                raise UnreadableError(
                    "csv_syntax",
                    f"in the row that begins here: {error}; is a double quote left open?",
                    line=line,
                ) from error
            code = "field_too_long" if "larger than field limit" in str(error) else "csv_syntax"
            yield line, RowError(line=line, code=code, message=f"is not CSV: {error}")
            continue
        if fields and fields != [""]:
            yield line, fields


def _split_tsv(lines: Iterator[str]) -> _Numbered:
    """One row a line, as TSV has it: quotes are text, save where they wrap a whole field."""
    for line, content in enumerate(lines, start=1):
        if content.strip():
            yield line, [_unquoted(f) for f in content.rstrip("\r\n").split("\t")]


def _unquoted(field: str) -> str:
    inner = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"':
        return field
    return field if '"' in inner.replace('""', "") else inner.replace('""', '"')
