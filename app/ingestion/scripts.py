"""The scripts that texts are written in, and the rows whose texts are in another than their side is."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
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
        swapped, odd = Tally(), (Tally(), Tally())
        for i, line in enumerate(lines):
            fits = self.fit(i)
            if not any(fits) and [codes[i] for codes in self._sides] == self._usual[::-1]:
                swapped.add(line)
                continue
            for tally, side_fits in zip(odd, fits, strict=True):
                if not side_fits:
                    tally.add(line)
        return Misplaced(swapped, *odd, *map(self._name, self._usual))

    def fit(self, row: int) -> list[bool]:
        """Whether each side of a row, counted from 0, is in its usual script, or in none."""
        return [
            usual is None or codes[row] in (usual, _NO_LETTERS)
            for codes, usual in zip(self._sides, self._usual, strict=True)
        ]

    @cached_property
    def _usual(self) -> list[int | None]:
        """The script of nearly all texts of each side, if there is one; asked for once all rows are there."""
        return [_usual(codes) for codes in self._sides]

    def _number(self, text: str) -> int:
        if text.isascii():
            codes = "".join(filter(str.isalpha, text[:_LOOKED_AT_CHARS]))[:1].translate(
                self._code_of
            )
        else:
            codes = text[:_LOOKED_AT_CHARS].translate(self._code_of)
        return ord(Counter(codes).most_common(1)[0][0]) if codes else _NO_LETTERS

    def _name(self, number: int | None) -> str:
        script = self._scripts[number or 0]
        return _NAMES.get(script, script.title())


def _usual(codes: Sequence[int]) -> int | None:
    counts = Counter(codes)
    del counts[_NO_LETTERS]
    if counts.total() < _LEAST_ROWS:
        return None
    code, count = counts.most_common(1)[0]
    return code if count >= _NEARLY_ALL * counts.total() else None
