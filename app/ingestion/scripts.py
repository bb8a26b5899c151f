"""The scripts that texts are written in, and the rows whose texts are in another than their side is."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from app.ingestion.records import Tally

_LOOKED_AT_CHARS = 200
_LEAST_ROWS = 20  # of fewer, none can be called the exception
_NEARLY_ALL = 0.95
_NO_LETTERS = 0
# Written together in one language.
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "BOPOMOFO": "CJK"}
_NAMES = {"CJK": "Chinese or Japanese"}


class _CodeByCharacter(dict[int, str | None]):
    """For str.translate: a letter -> the character whose number is its script's; anything else is deleted."""

    def __init__(self, scripts: list[str]) -> None:
        super().__init__()
        self._scripts = scripts

    def __missing__(self, codepoint: int) -> str | None:
        char = chr(codepoint)
        code = None
        if char.isalpha():
            # The first word of a letter's name is its script: LATIN, CYRILLIC, HANGUL, CJK, ...
            name = unicodedata.name(char, "").removeprefix("FULLWIDTH ").partition(" ")[0]
            script = _TOGETHER.get(name, name)
            if script not in self._scripts:
                self._scripts.append(script)
            code = chr(self._scripts.index(script))
        self[codepoint] = code
        return code


class Misplaced(NamedTuple):
    """Rows by what is odd about them; each side's usual script, in words, where there is one."""

    swapped: Tally
    of_source: Tally
    of_target: Tally
    source: str
    target: str


class ScriptTally:
    """Remembers the script of each side of each row, in four bytes."""

    def __init__(self) -> None:
        self._scripts = [""]  # by number; 0: no letters
        self._code_of = _CodeByCharacter(self._scripts)
        self._sides = (array("H"), array("H"))

    def add(self, source: str, target: str) -> None:
        for codes, text in zip(self._sides, (source, target), strict=True):
            codes.append(self._number(text))

    def misplaced(self, lines: Sequence[int]) -> Misplaced:
        """`lines` are the rows', in the order in which they were added."""
        usual = [self._usual(codes) for codes in self._sides]
        swapped, odd = Tally(), (Tally(), Tally())
        for line, source, target in zip(lines, *self._sides, strict=True):
            if None not in usual and usual[0] != usual[1] and [target, source] == usual:
                swapped.add(line)
                continue
            for tally, code, usually in zip(odd, (source, target), usual, strict=True):
                if usually is not None and code not in (usually, _NO_LETTERS):
                    tally.add(line)
        return Misplaced(swapped, *odd, *(self._name(number) for number in usual))

    def _number(self, text: str) -> int:
        if text.isascii():
            codes = "".join(filter(str.isalpha, text[:_LOOKED_AT_CHARS]))[:1].translate(
                self._code_of
            )
        else:
            codes = text[:_LOOKED_AT_CHARS].translate(self._code_of)
        return ord(Counter(codes).most_common(1)[0][0]) if codes else _NO_LETTERS

    def _usual(self, codes: Sequence[int]) -> int | None:
        """The script of nearly all texts, if there is one."""
        counts = Counter(codes)
        del counts[_NO_LETTERS]
        if counts.total() < _LEAST_ROWS:
            return None
        code, count = counts.most_common(1)[0]
        return code if count >= _NEARLY_ALL * counts.total() else None

    def _name(self, number: int | None) -> str:
        script = self._scripts[number or 0]
        return _NAMES.get(script, script.title())
