"""Parquet -> records, read page by page, so that memory holds a batch. A record's line is its row, counted from 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from app.ingestion.records import (
    MAX_COLUMN_CHARS,
    FaultyRowError,
    Record,
    Table,
    UnreadableError,
    is_encodable,
    printable,
)
from core.datasets import RowError

_BATCH_ROWS = 256
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
        _check_size(parquet, wanted)
        # As a dictionary, a text that is there a million times lies in memory once.
        texts = [c.path for c in _leaves(parquet, wanted) if c.physical_type == "BYTE_ARRAY"]
        with _unreadable_if_broken():
            reopened = pq.ParquetFile(source, read_dictionary=texts, **_OPTIONS)
        yield from _records(reopened, wanted)

    return Table(columns[:_MAX_COLUMNS], read)


def _leaves(parquet: Any, wanted: list[str]) -> list[Any]:
    leaves = (parquet.schema.column(i) for i in range(len(parquet.schema)))
    return [
        c for c in leaves if c.path in wanted or c.path.startswith(tuple(f"{w}." for w in wanted))
    ]


def _check_size(parquet: Any, wanted: list[str]) -> None:
    metadata = parquet.metadata
    if metadata.num_rows > _MAX_ROWS:
        raise UnreadableError(
            "too_many_rows",
            f"the file has {metadata.num_rows:,} rows; at most {_MAX_ROWS:,} are accepted",
        )
    paths = {leaf.path for leaf in _leaves(parquet, wanted)}
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in paths and (
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
    batches = parquet.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False)
    row = 0
    while True:
        with _unreadable_if_broken(row + 1):
            batch = next(batches, None)
        if batch is None:
            return
        readers = {name: _Values(batch.column(name)) for name in wanted}
        for i in range(batch.num_rows):
            row += 1
            try:
                yield Record(row, {name: values[i] for name, values in readers.items()})
            except FaultyRowError as error:
                yield RowError(line=row, code=error.code, message=str(error))


class _Values:
    """The values of one column of a batch, made as they are asked for."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self._known: dict[int, Any] = {}

    def __getitem__(self, i: int) -> Any:
        """Raises FaultyRowError for a text that is not UTF-8."""
        try:
            if not isinstance(self._array, pa.DictionaryArray):
                return self._array[i].as_py()
            index = self._array.indices[i].as_py()
            if index is not None and index not in self._known:
                self._known[index] = self._array.dictionary[index].as_py()
            return None if index is None else self._known[index]
        except (ValueError, IndexError, OverflowError) as error:
            raise FaultyRowError(
                "invalid_value", f"holds a value that cannot be read: {printable(str(error))}"
            ) from error


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
