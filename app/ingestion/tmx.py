"""TMX 1.4 (a standard of LISA, today GALA) -> records, one translation unit each, with a text by language."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import BinaryIO, TextIO
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import AttributesImpl

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

from app.ingestion.records import MAX_LINE_CHARS, Record, Table, Tally, UnreadableError, printable
from core.datasets import RowError

_CHUNK_CHARS = 64 * 1024
_NUM_SAMPLED = 200  # units whose languages are the columns
_MAX_LANGUAGES = 200
_MAX_LANGUAGE_CHARS = 40
# Within a segment these wrap the codes of another format (a tag of HTML, say), not text.
_CODES = frozenset({"bpt", "ept", "it", "ph", "ut"})
_ANY_SOURCE = "*all*"
_ENTITIES = "accepted are only those of XML itself, such as &amp;"
_DECLARATION = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z][\w.-]{0,39})[\"']")


def declared_encoding(file: BinaryIO) -> str | None:
    """What the XML declaration names, if it stands in bytes of one each."""
    file.seek(0)
    found = _DECLARATION.match(file.read(512))
    name = found[1].decode().lower() if found else None
    # A declaration that could be read so is in neither; converters often leave it as it was.
    return None if name is None or name.startswith(("utf-16", "utf-32", "ucs")) else name


def read_tmx(text: TextIO) -> Table:
    """The columns are the languages; "en" may be named for "en-US", and the other way round.

    Units that lack a wanted language, but hold two others, are left out. Raises UnreadableError, and so may the records.
    """
    handler = _Handler()
    units = _units(text, handler)
    sample = list(islice(units, _NUM_SAMPLED))
    languages = list(dict.fromkeys(lang for unit in sample for lang in unit.values))
    left_out = Tally()
    return Table(
        languages,
        lambda wanted: _records(chain(sample, units), wanted, left_out),
        sides=_sides(languages, handler.source_language),
        has=lambda code: _find(languages, code) is not None,
        left_out=left_out,
    )


def _sides(languages: list[str], source: str | None) -> tuple[str, str] | None:
    """The header's source language and the only other one, with or without their regions."""
    for known in (languages, list(dict.fromkeys(lang.partition("-")[0] for lang in languages))):
        if source and len(known) == 2 and (found := _find(known, source)):
            return found, known[1 - known.index(found)]
    return None


def _find(languages: Iterable[str], code: str) -> str | None:
    """The language that `code` means: itself in any case, or the first that is more or less particular."""
    wanted = code.lower()
    exact = (lang for lang in languages if lang.lower() == wanted)
    near = (
        lang
        for lang in languages
        if lang.lower().startswith(f"{wanted}-") or wanted.startswith(f"{lang.lower()}-")
    )
    return next(chain(exact, near), None)


def _records(
    units: Iterator[Record], wanted: list[str], left_out: Tally
) -> Iterator[Record | RowError]:
    """Each unit's texts by the names under which they are wanted."""
    for line, texts in units:
        sides = {column: _find(texts, column) for column in wanted}
        if None in sides.values() and len(texts) > 1:
            left_out.add(line)
            continue
        yield Record(line, {column: texts[lang] for column, lang in sides.items() if lang})


def _units(text: TextIO, handler: "_Handler") -> Iterator[Record]:
    # A DOCTYPE may stand there, and is not followed: SAX has that off. Entities are refused where they are declared.
    parser = DefusedExpatParser(forbid_external=False)
    parser.setContentHandler(handler)
    handler.setDocumentLocator(parser)
    try:
        # Text, not bytes: the parser then ignores the encoding that the file declares.
        while chunk := text.read(_CHUNK_CHARS):
            parser.feed(chunk)
            yield from handler.take_units()
        parser.close()
    except SAXParseException as error:
        raise UnreadableError(
            "xml_syntax",
            f"is not well-formed XML: {printable(error.getMessage())}",
            line=error.getLineNumber() or 1,
        ) from error
    except DefusedXmlException as error:
        raise UnreadableError(
            "xml_entities", f"declares an entity; {_ENTITIES}", line=parser.getLineNumber() or 1
        ) from error
    yield from handler.take_units()


class _Handler(ContentHandler):
    """Collects units as they end. Elements that TMX does not know are passed over, their text kept."""

    def __init__(self) -> None:
        super().__init__()
        self.source_language: str | None = None
        self._is_tmx = False
        self._units: list[Record] = []
        self._line = 0  # at which the unit begins; 0 outside of units
        self._texts: dict[str, str] = {}
        self._language = ""
        self._segment: list[str] | None = None
        self._num_chars = 0  # of the unit
        self._code_depth = 0  # of elements whose text is no text of the segment

    def take_units(self) -> list[Record]:
        units, self._units = self._units, []
        return units

    # The names that follow are those of xml.sax.

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802
        name = _local(name)
        if not self._is_tmx:
            if name != "tmx":
                raise self._fault("not_tmx", f"begins with <{printable(name)}>; TMX with <tmx>")
            self._is_tmx = True
        if self._segment is not None:
            self._code_depth += self._code_depth > 0 or name in _CODES
        elif name == "header":
            declared = attrs.get("srclang", _ANY_SOURCE).strip()
            self.source_language = None if declared.lower() == _ANY_SOURCE else declared
        elif name == "tu":
            self._line = self._locator_line()
            self._texts, self._num_chars = {}, 0
        elif name == "tuv" and self._line:
            self._language = self._language_of(attrs)
        elif name == "seg" and self._language:
            self._segment = []

    def characters(self, content: str) -> None:
        if self._segment is None or self._code_depth:
            return
        self._segment.append(content)
        self._num_chars += len(content)
        if self._num_chars > MAX_LINE_CHARS:
            raise self._fault(
                "line_too_long", f"the unit is longer than {MAX_LINE_CHARS:,} characters"
            )

    def endElement(self, name: str) -> None:  # noqa: N802
        name = _local(name)
        if self._segment is not None and name == "seg":
            self._texts.setdefault(self._language, "".join(self._segment))
            self._segment, self._code_depth = None, 0
        elif self._segment is not None:
            self._code_depth -= self._code_depth > 0
        elif name == "tuv":
            self._language = ""
        elif name == "tu" and self._line:
            self._units.append(Record(self._line, dict(self._texts)))
            self._line = 0

    def skippedEntity(self, name: str) -> None:  # noqa: N802
        """One that a DOCTYPE, which is not followed, may declare."""
        raise self._fault("xml_entities", f"uses the entity &{printable(name, 40)};; {_ENTITIES}")

    def _language_of(self, attrs: AttributesImpl) -> str:
        language = str(attrs.get("xml:lang") or attrs.get("lang") or "").strip()
        if not language or len(language) > _MAX_LANGUAGE_CHARS:
            raise self._fault(
                "language_missing", 'has a <tuv> without a language such as xml:lang="en"'
            )
        if len(self._texts) == _MAX_LANGUAGES:
            raise self._fault(
                "too_many_languages", f"the unit has more than {_MAX_LANGUAGES} languages"
            )
        primary, *others = language.replace("_", "-").split("-")
        regions = [part.upper() if len(part) == 2 else part for part in others]
        return "-".join([primary.lower(), *regions])

    def _fault(self, code: str, message: str) -> UnreadableError:
        return UnreadableError(code, message, line=self._locator_line())

    def _locator_line(self) -> int:
        return int(self._locator.getLineNumber() or 1)  # type: ignore[attr-defined]


def _local(name: str) -> str:
    """Without a namespace's prefix."""
    return name.rpartition(":")[2]
