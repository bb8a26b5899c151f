"""Bytes -> text: only UTF-8 without NUL passes, and a refusal says where the first wrong byte is."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from app.ingestion.records import MAX_LINE_CHARS, UnreadableError

ACCEPTED_ENCODING = "UTF-8, with or without a byte order mark"
_CHUNK_BYTES = 1024 * 1024
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def check_encoding(file: BinaryIO) -> None:
    """Reads `file` once from its start. Raises UnreadableError at the first byte that is not text."""
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the chunk
    line = 1  # in which the chunk begins
    while True:
        chunk = file.read(_CHUNK_BYTES)
        if offset == 0:
            _refuse_other_marks(chunk)
        held_back = decoder.getstate()[0]  # the start of a character cut by the chunk's border
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            start = error.start - len(held_back)
            raise UnreadableError(
                "invalid_utf8",
                f"byte 0x{(held_back + chunk)[error.start]:02x} at offset {offset + start} is not "
                f"UTF-8; accepted is {ACCEPTED_ENCODING}",
                line=line + chunk.count(b"\n", 0, max(start, 0)),
            ) from error
        position = chunk.find(b"\0")
        if position >= 0:
            raise UnreadableError(
                "nul",
                f"a NUL byte stands at offset {offset + position}; accepted is text in "
                f"{ACCEPTED_ENCODING}",
                line=line + chunk.count(b"\n", 0, position),
            )
        if not chunk:
            return
        offset += len(chunk)
        line += chunk.count(b"\n")


@contextmanager
def opened_as_text(file: BinaryIO) -> Iterator[TextIO]:
    """`file` from its start as text, line ends untouched; left open afterwards."""
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        yield text
    finally:
        text.detach()


def read_lines(text: TextIO) -> Iterator[str]:
    """Lines with their ends. Raises UnreadableError for one that is too long to be a row."""
    num_lines = 0
    while line := text.readline(MAX_LINE_CHARS + 1):
        num_lines += 1
        if len(line) > MAX_LINE_CHARS:
            raise UnreadableError(
                "line_too_long",
                f"the line is longer than {MAX_LINE_CHARS:,} characters",
                line=num_lines,
            )
        yield line


def _refuse_other_marks(chunk: bytes) -> None:
    for mark, encoding in _OTHER_MARKS:
        if chunk.startswith(mark):
            raise UnreadableError(
                "invalid_utf8", f"the file is {encoding}; accepted is {ACCEPTED_ENCODING}"
            )
