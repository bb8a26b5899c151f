"""Which rows of a dataset are kept from training, to judge the translator that comes out."""

import unicodedata
from array import array
from bisect import bisect_left
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
        hashes = sorted(array("Q", map(_hash, prompts)))
        most = len(hashes) // 2
        if isinstance(holdout, float):
            threshold = int(holdout * _NUM_HASHES)
        else:
            num_held = min(holdout, most)
            threshold = hashes[num_held - 1] + 1 if num_held else 0
        while (num_held := bisect_left(hashes, threshold)) > most:
            threshold = hashes[num_held - 1]  # without the last of them, and its twins
        return cls(threshold)

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
