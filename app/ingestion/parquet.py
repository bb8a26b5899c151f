"""Parquet -> records, read page by page and row by row. A record's line is its row, counted from 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from app.ingestion.records import (
    MAX_COLUMN_CHARS,
    Record,
    Table,
    UnreadableError,
    is_encodable,
    printable,
)
from core.datasets import RowError

_MAX_COLUMNS = 1000
_MAX_ROWS = 10_000_000
# Of one column in one row group: a file of a few bytes may claim to be any size, and a page is unpacked at once.
_MAX_CHUNK_BYTES = 1024 * 1024 * 1024
_MAX_CHUNK_VALUES = 50_000_000
_OPTIONS: dict[str, Any] = {
    "buffer_size": 1024 * 1024,
    "pre_buffer": False,
    "thrift_string_size_limit": 16 * 1024 * 1024,
    "thrift_container_size_limit": 1_000_000,
}


def read_parquet(file: BinaryIO) -> Table:
    """Only the columns that are wanted are read. Raises UnreadableError; the records may raise it too."""
    file.seek(0)
    source = pa.PythonFile(file, mode="r")  # which does not close what it was given
    with _unreadable_if_broken():
        parquet = pq.ParquetFile(source, **_OPTIONS)
        names = [str(name) for name in parquet.schema_arrow.names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UnreadableError(
            "duplicate_column",
            f"the file has the column {printable(twice)!r} twice; each needs its own name",
            column=printable(twice),
        )
    columns = [n for n in names if 0 < len(n) <= MAX_COLUMN_CHARS and is_encodable(n)]

    def read(wanted: list[str]) -> Iterator[Record | RowError]:
        with _unreadable_if_broken():
            _check_size(parquet, wanted)
        yield from _records(parquet, wanted)

    return Table(columns[:_MAX_COLUMNS], read)


def _check_size(parquet: Any, wanted: list[str]) -> None:
    metadata = parquet.metadata
    if metadata.num_rows > _MAX_ROWS:
        raise UnreadableError(
            "too_many_rows",
            f"the file has {metadata.num_rows:,} rows; at most {_MAX_ROWS:,} are accepted",
        )
    below = tuple(f"{name}." for name in wanted)
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for chunk in map(group.column, range(group.num_columns)):
            if (chunk.path_in_schema in wanted or chunk.path_in_schema.startswith(below)) and (
                chunk.total_uncompressed_size > _MAX_CHUNK_BYTES
                or chunk.num_values > _MAX_CHUNK_VALUES
            ):
                raise UnreadableError(
                    "row_group_too_large",
                    f"row group {i + 1} holds {chunk.total_uncompressed_size:,} bytes and "
                    f"{chunk.num_values:,} values of this column; at most {_MAX_CHUNK_BYTES:,} and "
                    f"{_MAX_CHUNK_VALUES:,} are accepted: write smaller row groups",
                    column=printable(chunk.path_in_schema),
                )


def _records(parquet: Any, wanted: list[str]) -> Iterator[Record | RowError]:
    # One row at a time, which costs 5 µs a row: a text that a few bytes repeat a million times lies in memory once.
    batches = parquet.iter_batches(1, columns=wanted, use_threads=False)
    for row in count(1):
        with _unreadable_if_broken(row):
            batch = next(batches, None)
        if batch is None:
            return
        try:
            yield Record(row, {name: batch.column(name)[0].as_py() for name in wanted})
        except (ValueError, OverflowError) as error:
            message = f"holds a value that cannot be read: {printable(str(error))}"
            yield RowError(line=row, code="invalid_value", message=message)


@contextmanager
def _unreadable_if_broken(row: int = 1) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk failed, not the file
        raise UnreadableError(
            "parquet_syntax", f"is not Parquet that can be read: {printable(str(error))}", line=row
        ) from error
