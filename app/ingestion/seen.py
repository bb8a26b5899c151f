"""Tells rows that were there before, by digests, so that memory does not grow with their length."""

from enum import Enum, auto
from hashlib import blake2b

from core.datasets import Row

_DIGEST_BYTES = 12


class Seen(Enum):
    NEW = auto()
    DUPLICATE = auto()
    CONTRADICTION = auto()  # a known source with another target


class SeenRows:
    """Remembers about 150 bytes a row."""

    def __init__(self) -> None:
        self._prompts: set[bytes] = set()
        self._rows: set[bytes] = set()

    def add(self, row: Row) -> Seen:
        # A row holds no NUL, so this joins the texts without ambiguity.
        whole = _digest("\0".join(t for e in row.exchanges for t in (e.prompt, e.completion)))
        if whole in self._rows:
            return Seen.DUPLICATE
        self._rows.add(whole)
        if row.further:
            return Seen.NEW  # a conversation may well begin as another does
        prompt = _digest(row.prompt)
        if prompt in self._prompts:
            return Seen.CONTRADICTION
        self._prompts.add(prompt)
        return Seen.NEW


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
