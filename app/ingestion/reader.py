"""An upload -> a table of numbered records, whatever its format and encoding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from app.ingestion.delimited import read_delimited
from app.ingestion.encoding import Encoding, opened_as_text, settle_encoding
from app.ingestion.formats import Format, detect_binary, detect_format
from app.ingestion.json_rows import read_json
from app.ingestion.parquet import read_parquet
from app.ingestion.records import Table
from app.ingestion.tmx import declared_encoding, read_tmx


class OpenedTable(NamedTuple):
    """`encoding` is None for a format that is no text."""

    table: Table
    format: Format
    encoding: Encoding | None


@contextmanager
def opened_table(
    file: BinaryIO, filename: str, encoding_name: str | None = None
) -> Iterator[OpenedTable]:
    """Streams: records are read from `file` as they are asked for. `file` is left open.

    Raises UnreadableError, UnsupportedFormatError, and InvalidError `encoding_unknown`.
    """
    binary = detect_binary(file, filename, has_encoding=encoding_name is not None)
    if binary is not None:
        yield OpenedTable(read_parquet(file), binary, None)
        return
    encoding = settle_encoding(file, encoding_name or declared_encoding(file))
    with opened_as_text(file, encoding) as text:
        file_format = detect_format(text, filename)
    with opened_as_text(file, encoding) as text:
        if file_format is Format.TMX:
            table = read_tmx(text)
        elif file_format in (Format.CSV, Format.TSV):
            table = read_delimited(text, file_format)
        else:
            table = read_json(text, file_format)
        yield OpenedTable(table, file_format, encoding)
