"""Token ids -> text, a token at a time, and the search for stop strings in what has come."""

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"  # what a byte-level token decodes to before its character is whole

_MAX_BYTES = 4  # of a character in UTF-8; more bytes than that are no beginning of one


class Decoder(Protocol):
    """What is used of a transformers tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...


def decode(tokenizer: Decoder, token_ids: list[int]) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=True)


class TextStream:
    """Turns a growing list of token ids into text that may be shown: never half a character or half a stop string."""

    def __init__(self, tokenizer: Decoder, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [s for s in stop if s]
        self._ids: list[int] = []
        self._start = self._read = 0  # only the ids since `start` are decoded again
        self._text = ""
        self._num_shown = 0
        self.stopped = False  # a stop string was found; the text ends before it

    @property
    def text(self) -> str:
        """All text so far."""
        return self._text

    @property
    def num_tokens(self) -> int:
        return len(self._ids)

    def push(self, token_ids: list[int]) -> str:
        """Takes new tokens; returns the text that may be shown now, often one token's."""
        self._ids += token_ids
        whole = decode(self._tokenizer, self._ids[self._start :])
        if whole.endswith(_REPLACEMENT) and len(self._ids) - self._read < _MAX_BYTES:
            return ""
        new = whole[self._num_known() :]
        self._start, self._read = self._read, len(self._ids)
        return self._take(new)

    def finish(self) -> str:
        """No more tokens come: returns what was held back."""
        if self.stopped:
            return ""
        shown = ""
        if self._read < len(self._ids):
            whole = decode(self._tokenizer, self._ids[self._start :])
            shown = self._take(whole[self._num_known() :])
        rest = self._text[self._num_shown :]
        self._num_shown = len(self._text)
        return shown + rest

    def _num_known(self) -> int:
        """Length of the text of the ids since `start` that have been read."""
        if self._start == self._read:  # as with an answer that comes all at once
            return 0
        return len(decode(self._tokenizer, self._ids[self._start : self._read]))

    def _take(self, text: str) -> str:
        self._text += text
        for stop in self._stop:
            found = self._text.find(stop, max(0, self._num_shown - len(stop) + 1))
            if found >= 0:
                self._text = self._text[:found]
                self.stopped = True
        end = len(self._text) if self.stopped else len(self._text) - self._num_held_back()
        shown = self._text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return shown

    def _num_held_back(self) -> int:
        """Length of the longest ending that could become a stop string."""
        lengths = (
            n
            for stop in self._stop
            for n in range(1, min(len(stop), len(self._text) + 1))
            if self._text.endswith(stop[:n])
        )
        return max(lengths, default=0)
