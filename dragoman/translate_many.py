"""Many texts, several at a time, in order; one that the server refuses does not end the others."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dragoman.errors import ApiError
from dragoman.models import Translation


@dataclass(frozen=True)
class Line:
    """One text of many, counted from 1: its translation, or why it has none. A blank text has neither."""

    number: int
    source: str
    translation: Translation | None = None
    error: ApiError | None = None

    @property
    def text(self) -> str:
        return self.translation.text if self.translation else ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON lines have it."""
        shown: dict[str, Any] = {"line": self.number, "source": self.source}
        if self.error:
            return shown | {"error": self.error.to_dict()}
        shown["translation"] = self.text
        if self.translation:
            shown["adapter"] = self.translation.adapter
            shown["finish_reason"] = self.translation.finish_reason
            if self.translation.alternatives:
                shown["alternatives"] = self.translation.alternatives
        return shown


Numbered = tuple[int, str]


def in_order(
    texts: Iterable[Numbered], translate: Callable[[str], Translation], concurrency: int
) -> Generator[Line]:
    """Takes no more texts than are under way, so that `texts` may be endless."""

    def one(number: int, text: str) -> Line:
        if not text.strip():
            return Line(number, text)
        try:
            return Line(number, text, translation=translate(text))
        except ApiError as error:
            return failed_line(number, text, error)

    window: deque[Future[Line]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="translate")
    try:
        for number, text in texts:
            window.append(pool.submit(one, number, text))
            if len(window) >= concurrency:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


async def in_order_async(
    texts: Iterable[Numbered], translate: Callable[[str], Awaitable[Translation]], concurrency: int
) -> AsyncGenerator[Line]:
    """Takes no more texts than are under way, so that `texts` may be endless."""

    async def one(number: int, text: str) -> Line:
        if not text.strip():
            return Line(number, text)
        try:
            return Line(number, text, translation=await translate(text))
        except ApiError as error:
            return failed_line(number, text, error)

    window: deque[asyncio.Task[Line]] = deque()
    try:
        for number, text in texts:
            window.append(asyncio.create_task(one(number, text)))
            if len(window) >= concurrency:
                yield await window.popleft()
        while window:
            yield await window.popleft()
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


def failed_line(number: int, text: str, error: ApiError) -> Line:
    """Raises `error` again unless it is this text's own affair."""
    if not _concerns_text(error):
        raise error
    return Line(number, text, error=error)


def _concerns_text(error: ApiError) -> bool:
    if error.errors:  # a validation: of `q`, or of an option that all texts share
        return any("q" in fault.get("loc", ()) for fault in error.errors)
    return error.status in (413, 422, 500) and error.code != "max_new_tokens_too_large"
