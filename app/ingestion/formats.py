"""Which format a file is in: its name decides, then how it begins."""

import codecs
import json
from enum import StrEnum
from pathlib import PurePath
from typing import BinaryIO, TextIO

from app.ingestion.records import UnreadableError, UnsupportedFormatError, printable

ACCEPTED_FORMATS = (
    "CSV or TSV with a header line, JSONL (one object a line), JSON (a list of objects), TMX, or "
    "Parquet"
)
_HEAD_BYTES = 256
_HEAD_CHARS = 64 * 1024


class Format(StrEnum):
    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    JSON = "json"
    TMX = "tmx"
    PARQUET = "parquet"


_BY_SUFFIX = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSON,
    ".tmx": Format.TMX,
    ".parquet": Format.PARQUET,
}
# Often tried; without this they would fail later, with a less helpful word about encoding.
_OTHER_SUFFIXES = frozenset({
    ".arrow", ".bz2", ".doc", ".docx", ".feather", ".gz", ".html", ".ods", ".pdf",
    ".tar", ".xls", ".xlsx", ".xliff", ".xz", ".yaml", ".yml", ".zip", ".zst",
})  # fmt: skip
_OTHER_BEGINNINGS = (
    b"PK\x03\x04",
    b"ARROW1",
    b"\x1f\x8b",
    b"BZh",
    b"%PDF",
)
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_PARQUET_MAGIC = b"PAR1"


def detect_binary(file: BinaryIO, filename: str, *, has_encoding: bool) -> Format | None:
    """Reads the beginning of `file`. None: it is to be read as text, as which who names its encoding knows it.

    Raises UnsupportedFormatError for a format that is not read here.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    suffix = PurePath(filename).suffix.lower()
    if head.startswith(_PARQUET_MAGIC) or suffix == ".parquet":
        return Format.PARQUET
    if suffix in _OTHER_SUFFIXES or head.startswith(_OTHER_BEGINNINGS):
        raise _unsupported(filename)
    is_text = has_encoding or suffix in _BY_SUFFIX or head.startswith(_UTF16_MARKS)
    if b"\0" in head and not is_text:
        raise _unsupported(filename)  # a program, say
    return None


def detect_format(text: TextIO, filename: str) -> Format:
    """Reads the beginning of `text`.

    Raises UnsupportedFormatError for a format that is not read here, UnreadableError for a `.json`
    that holds neither a list nor one object a line.
    """
    head = text.read(_HEAD_CHARS).lstrip()
    by_suffix = _BY_SUFFIX.get(PurePath(filename).suffix.lower())
    if by_suffix in (Format.JSON, Format.JSONL):
        return _json_format(by_suffix, head)
    return by_suffix or _by_content(head, filename)


def _json_format(by_suffix: Format, text: str) -> Format:
    if text.startswith("["):
        return Format.JSON
    if by_suffix is Format.JSONL or _is_object_a_line(text):
        return Format.JSONL
    raise UnreadableError(
        "not_a_list", f"the JSON is not a list of objects; accepted is {ACCEPTED_FORMATS}"
    )


def _is_object_a_line(text: str) -> bool:
    first, _, rest = text.partition("\n")
    try:
        return isinstance(json.loads(first), dict) and bool(rest.strip())
    except (ValueError, RecursionError):
        return False


def _by_content(text: str, filename: str) -> Format:
    if text.startswith("["):
        return Format.JSON
    if text.startswith("{"):
        return Format.JSONL
    if text.startswith("<"):
        if "<tmx" in text:
            return Format.TMX
        raise _unsupported(filename)
    header = text.partition("\n")[0]
    if "\t" in header:
        return Format.TSV
    if "," in header or ";" in header:
        return Format.CSV
    raise _unsupported(filename)


def _unsupported(filename: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        f"{printable(filename)!r} is not in a format that is read here; accepted is "
        f"{ACCEPTED_FORMATS}",
        accepted=[str(f) for f in Format],
    )
