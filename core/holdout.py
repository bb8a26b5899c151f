"""Which rows of a dataset are kept from training, to judge the translator that comes out."""

import heapq
import unicodedata
from collections.abc import Iterable
from hashlib import blake2b
from typing import Self

_HASH_BYTES = 8
_NUM_HASHES = 2 ** (8 * _HASH_BYTES)


class HoldOut:
    """Chooses by a hash of the source text: the same rows whenever the data is the same, whatever their order.

    Sources that differ only in case, spacing and punctuation have one hash, so twins are on the same side.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold

    @classmethod
    def choose(cls, prompts: Iterable[str], holdout: int | float) -> Self:
        """`holdout`: a share of the rows (0.1), or about so many of them (an int; twins may add to it).

        At least half of the rows are left to train on.
        """
        if isinstance(holdout, float):
            return cls(int(min(holdout, 0.5) * _NUM_HASHES))
        hashes = [_hash(prompt) for prompt in prompts]
        chosen = heapq.nsmallest(min(holdout, len(hashes) // 2), hashes)
        return cls(chosen[-1] + 1 if chosen else 0)

    def holds(self, prompt: str) -> bool:
        """Whether the row with this source text is held out."""
        return _hash(prompt) < self._threshold


def without_trifles(text: str) -> str:
    """`text` without case, spacing and punctuation; what has nothing else is left as it is."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(filter(str.isalnum, folded)) or text


def _hash(prompt: str) -> int:
    digest = blake2b(without_trifles(prompt).encode(), digest_size=_HASH_BYTES)
    return int.from_bytes(digest.digest())
