"""Finds texts that are nearly the same as one of a set: those with one word changed, which a hash tells apart."""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
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

# A word, and which of its occurrences in the text this is.
_Token = tuple[str, int]


class NearDuplicates:
    """Looks texts up in an index of others.

    Near are two texts whose common words, each as often as both have it, are at least THRESHOLD of the longer's
    words. Case, punctuation and order do not matter. The index is a prefix filter (Bayardo et al. 2007, "Scaling up
    all pairs similarity search"): two near texts share one of their rarest words, so only few are compared.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts: list[str] = []
        self._tokens: list[frozenset[_Token]] = []
        for text in texts:
            if tokens := _tokenise(text):
                self._texts.append(text)
                self._tokens.append(frozenset(tokens))
        self._frequencies = Counter(token for tokens in self._tokens for token in tokens)
        self._index: dict[_Token, list[int]] = defaultdict(list)
        for i in sorted(range(len(self._tokens)), key=self._length):
            for token in self._rarest(list(self._tokens[i])):
                self._index[token].append(i)

    def find(self, text: str) -> str | None:
        """An indexed text that `text` is near to, if there is one."""
        tokens = _tokenise(text)
        num_known = sum(token in self._frequencies for token in tokens)
        if not tokens or num_known < _least_common(len(tokens)):
            return None
        of_text = frozenset(tokens)
        compared: set[int] = set()
        for i in self._sharing(tokens):
            if i in compared:
                continue
            if len(compared) == _MAX_COMPARED:
                break
            compared.add(i)
            longer = max(len(tokens), len(self._tokens[i]))
            if len(of_text & self._tokens[i]) >= _least_common(longer):
                return self._texts[i]
        return None

    def _sharing(self, tokens: list[_Token]) -> Iterator[int]:
        """Texts of like length that have one of the rarest tokens, those with the very rarest first."""
        shortest = _least_common(len(tokens))
        longest = ceil(len(tokens) / THRESHOLD)
        for token in self._rarest(tokens):
            having = self._index.get(token, [])
            start = bisect_left(having, shortest, key=self._length)
            end = bisect_right(having, longest, key=self._length)
            yield from having[start:end]

    def _length(self, i: int) -> int:
        return len(self._tokens[i])

    def _rarest(self, tokens: list[_Token]) -> list[_Token]:
        """So many that without one of them too few would be left to be near."""
        num_rarest = len(tokens) - _least_common(len(tokens)) + 1
        return sorted(tokens, key=lambda t: (self._frequencies[t], t))[:num_rarest]


def _least_common(num_words: int) -> int:
    return ceil(THRESHOLD * num_words)


def _tokenise(text: str) -> list[_Token]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    seen: dict[str, int] = {}
    tokens = []
    for word in words:
        seen[word] = occurrence = seen.get(word, 0) + 1
        tokens.append((word, occurrence))
    return tokens
