"""A file in a known format -> a table of numbered records."""

from typing import TextIO

from app.ingestion.delimited import read_delimited
from app.ingestion.formats import Format
from app.ingestion.json_rows import read_json
from app.ingestion.records import Table


def read_table(text: TextIO, file_format: Format) -> Table:
    """Streams: the records are read from `text` as they are asked for. Raises UnreadableError."""
    if file_format in (Format.CSV, Format.TSV):
        return read_delimited(text, file_format)
    return read_json(text, file_format)
