"""Bytes -> text. UTF-8 unless a mark, the sender or the bytes themselves say otherwise; no NUL; no guess in doubt."""

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TextIO

from charset_normalizer import CharsetMatch, from_bytes

from app.ingestion.records import MAX_LINE_CHARS, UnreadableError, printable
from app.languages import detect
from core.errors import InvalidError

_CHUNK_BYTES = 1024 * 1024
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# GB18030 reads all that its forerunners do, and more.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932"}
# What texts that are not Unicode are in, and in which languages. Of two that read a file alike, the first is named.
_LEGACY = {
    "cp1252": "en fr de es pt it nl sv da no nb nn fi is ca gl eu ga oc af lb wa br id ms tl sw",
    "gb18030": "zh",
    "big5": "zh",
    "cp932": "ja",
    "euc_jp": "ja",
    "cp949": "ko",
    "cp1251": "ru uk be bg mk sr mn kk ky",
    "koi8_r": "ru",
    "cp1250": "pl cs sk hu sl hr bs sr ro sq",
    "cp1253": "el",
    "cp1254": "tr az",
    "cp1255": "he",
    "cp1256": "ar fa ur",
    "cp1257": "lt lv et",
    "cp1258": "vi",
    "cp874": "th",
}
_LEAST_PROBABILITY = 0.9
_DETECTED_CHARS = 4000
_LEAST_DETECTED_BYTES = 60  # of UTF-8: 60 Latin letters, 20 Chinese characters
_BETWEEN_TEXTS = re.compile(r'[",;:\t\r\n{}\[\]]+')
_NO_ENCODINGS = re.compile("idna|punycode|undefined|escape")  # which Python has, too
_SAMPLED_BYTES = 128 * 1024
_SAMPLED_BYTES_OF_CHUNK = 16 * 1024
# In a text of another encoding most characters are wrong as UTF-8; in UTF-8 that was damaged, few are.
_LEAST_WRONG = 8
_LEAST_WRONG_SHARE = 2 / 3
# charset-normalizer's measures, 0..1: how odd the characters are together, how well they suit a language.
_MAX_CHAOS = 0.1
_CHAOS_MARGIN = 0.02
_COHERENCE_MARGIN = 0.03
_HOW_TO_NAME = (
    "save the file as UTF-8, or send its encoding by name, such as encoding=gb18030 or "
    "encoding=windows-1252"
)


@dataclass(frozen=True)
class Encoding:
    """A codec's name, the length of the byte order mark in front, and whether it had to be guessed."""

    codec: str
    num_mark_bytes: int = 0
    is_detected: bool = False


def settle_encoding(file: BinaryIO, named: str | None = None) -> Encoding:
    """Reads `file` to its end; all of it is text in the encoding returned.

    Raises InvalidError `encoding_unknown` for a name that is none, and UnreadableError.
    """
    codec = _codec(named) if named else None
    file.seek(0)
    head = file.read(4)
    mark, marked = next(((m, c) for m, c in _MARKS if head.startswith(m)), (b"", None))
    if codec and marked and codec not in (marked, marked.removesuffix("-le").removesuffix("-be")):
        raise UnreadableError(
            "encoding_contradicted",
            f"the file begins with the byte order mark of {marked}, but {named} was named",
        )
    encoding = Encoding(marked or codec or "utf-8", len(mark))
    try:
        check_encoding(file, encoding)
    except UnreadableError as error:
        if marked or codec or error.fault.code != "invalid_utf8":
            raise
        encoding = _detect(file, error)
        check_encoding(file, encoding)
    return encoding


def check_encoding(file: BinaryIO, encoding: Encoding) -> None:
    """Reads `file` once from its start. Raises UnreadableError at the first byte that is not text."""
    offset = encoding.num_mark_bytes  # of the chunk
    file.seek(offset)
    decoder = codecs.getincrementaldecoder(encoding.codec)()
    line = 1  # in which the chunk begins
    while True:
        chunk = file.read(_CHUNK_BYTES)
        held_back = decoder.getstate()[0]  # the start of a character cut by the chunk's border
        chunk_start = offset - len(held_back)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(encoding.codec, "replace")
            raise _wrong_byte(encoding, error, chunk_start, line + before.count("\n")) from error
        position = text.find("\0")
        if position >= 0:
            at = chunk_start + len(text[:position].encode(encoding.codec))
            raise UnreadableError(
                "nul",
                f"a NUL byte stands at offset {at}; accepted is text. If the file is UTF-16 "
                "without a byte order mark, send encoding=utf-16-le or encoding=utf-16-be",
                line=line + text.count("\n", 0, position),
            )
        if not chunk:
            return
        offset += len(chunk)
        line += text.count("\n")


@contextmanager
def opened_as_text(file: BinaryIO, encoding: Encoding) -> Iterator[TextIO]:
    """`file` from its start as text, line ends untouched; left open afterwards."""
    file.seek(encoding.num_mark_bytes)
    text = io.TextIOWrapper(file, encoding=encoding.codec, newline="")
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


def _codec(name: str) -> str:
    try:
        info = codecs.lookup(name.strip())
        "".encode(info.name)  # refuses those that are no encodings of text, such as zip
        if _NO_ENCODINGS.search(info.name):
            raise LookupError(name)
    except (LookupError, ValueError) as error:
        raise InvalidError(
            f"{printable(name)!r} is not an encoding that is known; accepted are names such as "
            "utf-8, utf-16, gb18030, big5, shift_jis, windows-1252",
            code="encoding_unknown",
        ) from error
    codec = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(info.name)
    return codec or _SUPERSETS.get(info.name, info.name)


def _wrong_byte(
    encoding: Encoding, error: UnicodeDecodeError, start: int, line: int
) -> UnreadableError:
    """`start` is the offset in the file at which the bytes that could not be decoded begin."""
    byte = error.object[error.start]
    where = f"byte 0x{byte:02x} at offset {start + error.start}"
    if encoding.codec == "utf-8":
        message = f"{where} is not UTF-8; accepted is UTF-8: {_HOW_TO_NAME}"
        return UnreadableError("invalid_utf8", message, line=line)
    which = f"{encoding.codec}, as which the file was read"
    return UnreadableError("invalid_bytes", f"{where} is not {which}; {_HOW_TO_NAME}", line=line)


def _detect(file: BinaryIO, wrong_byte: UnreadableError) -> Encoding:
    """The encoding of a file that is not UTF-8. Raises `wrong_byte` where it is meant as UTF-8 nevertheless."""
    sample = _sample(file)
    as_utf8 = sample.decode("utf-8", "replace")
    num_wrong = as_utf8.count("\ufffd")
    num_foreign = sum(not char.isascii() for char in as_utf8)
    if num_wrong < max(_LEAST_WRONG, _LEAST_WRONG_SHARE * num_foreign):
        raise wrong_byte
    readings = [(m, _suiting_codecs(m)) for m in from_bytes(sample, cp_isolation=[*_LEGACY])]
    readings = sorted(
        ((match, suiting) for match, suiting in readings if suiting),
        key=lambda reading: (round(reading[0].chaos, 2), -reading[0].coherence),
    )
    if readings and readings[0][0].chaos <= _MAX_CHAOS:
        likely = [r for r in readings if r is readings[0] or _is_as_likely(r[0], readings[0][0])]
    else:
        likely = []
    if len(likely) != 1:
        names = " or ".join(suiting[0] for _, suiting in likely[:4])
        raise UnreadableError(
            "encoding_doubtful",
            f"the file is not UTF-8, and what it is cannot be told{names and f' ({names})'}; "
            + _HOW_TO_NAME,
            line=wrong_byte.fault.line,
        ) from wrong_byte
    return Encoding(likely[0][1][0], is_detected=True)


def _suiting_codecs(match: CharsetMatch) -> list[str]:
    """Those that read the bytes as `match` does, and that its language is written in.

    French is French still where it is read as if it were Polish; but Polish it is not.
    """
    texts = [text for text in _BETWEEN_TEXTS.split(str(match)) if not text.isascii()]
    text = " ".join(texts)[:_DETECTED_CHARS]
    code, probability = detect(text)[0]
    if probability < _LEAST_PROBABILITY or len(text.encode()) < _LEAST_DETECTED_BYTES:
        return []
    return [
        codec
        for codec, languages in _LEGACY.items()
        if codec in match.could_be_from_charset and code in languages.split()
    ]


def _is_as_likely(match: CharsetMatch, best: CharsetMatch) -> bool:
    return (
        match.chaos <= best.chaos + _CHAOS_MARGIN
        and match.coherence >= best.coherence - _COHERENCE_MARGIN
    )


def _sample(file: BinaryIO) -> bytes:
    """Lines with characters beyond ASCII, from all over the file."""
    file.seek(0)
    sample = bytearray()
    while len(sample) < _SAMPLED_BYTES and (chunk := file.read(_CHUNK_BYTES)):
        chunk += file.readline(_CHUNK_BYTES)
        of_chunk = bytearray()
        for line in chunk.splitlines(keepends=True):
            if not line.isascii():
                of_chunk += line[:_SAMPLED_BYTES_OF_CHUNK]
            if len(of_chunk) >= _SAMPLED_BYTES_OF_CHUNK:
                break
        sample += of_chunk
    return bytes(sample)
