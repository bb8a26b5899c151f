"""Finds texts that are nearly the same as one of a set: those with one word changed, which a hash tells apart."""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from math import ceil

# Share of words that two near duplicates have in common: one word in seven may differ, none in a shorter text.
# "I like cats." and "I like dogs." are two sentences, not one.
THRESHOLD = 0.85

# Bounds the time where all texts are made from one template. Those that share the rarest words come first.
_MAX_COMPARED = 64

# Written without spaces, so that each character counts as a word: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Accents, points and vowel signs, which Python does not count as parts of a word.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0971-\u0dff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+")

_MAX_WORDS = 512  # of a text; what comes after them is not compared


class NearDuplicates:
    """Looks texts up in an index of others.

    Near are two texts whose common words, each as often as both have it, are at least THRESHOLD of the longer's
    words. Case, punctuation and order do not matter. The index is a prefix filter (Bayardo et al. 2007, "Scaling up
    all pairs similarity search"): two near texts share one of their rarest words, so only few are compared.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        known: dict[str, str] = {}  # so that each word lies in memory once
        words = {text: [known.setdefault(w, w) for w in _split(text)] for text in texts}
        words = {text: found for text, found in words.items() if found}
        frequencies = Counter(word for found in words.values() for word in found)
        by_frequency = sorted(frequencies, key=lambda word: (frequencies[word], word))
        self._ranks = {word: rank for rank, word in enumerate(by_frequency)}  # 0: the rarest
        # By length, so that those of like length lie together in the index.
        self._texts = sorted(words, key=lambda text: len(words[text]))
        self._words = [frozenset(map(self._ranks.__getitem__, words[t])) for t in self._texts]
        self._index: dict[int, list[int]] = defaultdict(list)
        for i, ranks in enumerate(self._words):
            for rank in sorted(ranks)[: _num_rarest(len(ranks))]:
                self._index[rank].append(i)

    def find(self, text: str) -> str | None:
        """An indexed text that `text` is near to, if there is one."""
        words = _split(text)
        ranks = sorted(self._ranks[word] for word in words if word in self._ranks)
        if not words or len(ranks) < _least_common(len(words)):
            return None
        of_text = frozenset(ranks)
        # Words that are not in the index are the rarest of all.
        num_rarest = _num_rarest(len(words)) - (len(words) - len(ranks))
        compared: set[int] = set()
        for i in self._sharing(ranks[:num_rarest], len(words)):
            if i in compared:
                continue
            if len(compared) == _MAX_COMPARED:
                break
            compared.add(i)
            longer = max(len(words), self._length(i))
            if len(of_text & self._words[i]) >= _least_common(longer):
                return self._texts[i]
        return None

    def _sharing(self, ranks: list[int], num_words: int) -> Iterator[int]:
        """Texts of about `num_words` words that share one of `ranks`, those with the very rarest first."""
        for rank in ranks:
            having = self._index.get(rank, [])
            start = bisect_left(having, _least_common(num_words), key=self._length)
            end = bisect_right(having, ceil(num_words / THRESHOLD), key=self._length)
            yield from having[start:end]

    def _length(self, i: int) -> int:
        return len(self._words[i])


def _least_common(num_words: int) -> int:
    return ceil(THRESHOLD * num_words)


def _num_rarest(num_words: int) -> int:
    """Of so many words; without all of them too few would be left to be near."""
    return num_words - _least_common(num_words) + 1


def _split(text: str) -> list[str]:
    """Its words, of which later occurrences are told apart by their number."""
    seen: dict[str, int] = {}
    words = []
    for match in islice(_WORD.finditer(unicodedata.normalize("NFKC", text).casefold()), _MAX_WORDS):
        word = match[0]
        seen[word] = occurrence = seen.get(word, 0) + 1
        words.append(word if occurrence == 1 else f"{word} {occurrence}")
    return words
