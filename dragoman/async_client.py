"""The client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

from httpx_sse import EventSource, ServerSentEvent

from dragoman.adapters import AsyncAdapters
from dragoman.calls import Call
from dragoman.datasets import AsyncDatasets
from dragoman.endpoint import AsyncResource
from dragoman.errors import ConnectionFailedError, TimedOutError
from dragoman.jobs import AsyncJobs
from dragoman.models import Readiness, Translation, Translations
from dragoman.suggestions import AsyncSuggestions
from dragoman.system import SystemEndpoints
from dragoman.translate_file import FileReport, FileTranslation, OnLine
from dragoman.translate_many import Line, Numbered, in_order_async
from dragoman.translation import AsyncTranslationStream, TranslateOptions, kind_of, translate_call
from dragoman.transport import AsyncTransport, Connection


class AsyncClient(SystemEndpoints, AsyncResource):
    """Client, which see, with methods to await."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 4,
    ) -> None:
        connection = Connection.of(url, api_key, timeout_s, max_retries)
        super().__init__(AsyncTransport(connection))
        self.url = connection.url
        self.datasets = AsyncDatasets(self._transport)
        self.jobs = AsyncJobs(self._transport)
        self.adapters = AsyncAdapters(self._transport)
        self.suggestions = AsyncSuggestions(self._transport)

    @overload
    async def translate(
        self, q: str, *, stream: Literal[False] = False, **options: Unpack[TranslateOptions]
    ) -> Translation: ...
    @overload
    async def translate(
        self,
        q: list[str],
        *,
        stream: Literal[False] = False,
        **options: Unpack[TranslateOptions],
    ) -> Translations: ...
    @overload
    async def translate(
        self, q: str, *, stream: Literal[True], **options: Unpack[TranslateOptions]
    ) -> AsyncTranslationStream[Translation]: ...
    @overload
    async def translate(
        self, q: list[str], *, stream: Literal[True], **options: Unpack[TranslateOptions]
    ) -> AsyncTranslationStream[Translations]: ...
    async def translate(
        self, q: str | list[str], *, stream: bool = False, **options: Unpack[TranslateOptions]
    ) -> Any:
        """Translates a text, or a list of texts in one request.

        `stream`: returns at once an iterator of tokens, which has the whole as `.result` in the end.
        Raises NotFoundError for an adapter or a language pair that does not exist, InvalidError.
        """
        call = translate_call(q, options, stream=stream)
        if stream:
            return AsyncTranslationStream(kind_of(q), self._sse(call))
        return await self._transport.send(call)

    def translate_many(
        self, texts: Iterable[str], *, concurrency: int = 16, **options: Unpack[TranslateOptions]
    ) -> AsyncGenerator[Line]:
        """Each text with its translation, in order, `concurrency` at a time; `texts` may be endless.

        What the server refuses is reported in its line. What concerns all of them is raised: no such adapter, no
        server.
        """
        return self._translate_numbered(enumerate(texts, 1), concurrency, options)

    async def translate_file(
        self,
        input_path: str | Path,
        output_path: str | Path,
        *,
        concurrency: int = 16,
        on_line: OnLine | None = None,
        **options: Unpack[TranslateOptions],
    ) -> FileReport:
        """Translates a UTF-8 text file line by line; `output_path` ending in .jsonl: JSON lines with both sides.

        Interrupted, it goes on where it was when it is called again; lines that failed are tried again.
        """
        with FileTranslation(input_path, output_path, options) as work:
            lines = self._translate_numbered(work.remaining(), concurrency, options)
            async with aclosing(lines):
                async for line in lines:
                    work.note(line)
                    if on_line:
                        on_line(line)
            return work.finish()

    async def wait_until_ready(self, timeout_s: float = 120.0) -> Readiness:
        """Returns once the server has its model, Redis and volume. Raises TimedOutError, which says what is missing."""
        missing = ""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        state = await self.ready()
                        if state.ok:
                            return state
                        missing = state.describe()
                    except ConnectionFailedError as error:
                        missing = str(error)
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise TimedOutError(f"not ready after {timeout_s:.0f} s: {missing}") from error

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _translate_numbered(
        self, texts: Iterable[Numbered], concurrency: int, options: TranslateOptions
    ) -> AsyncGenerator[Line]:
        async def one(text: str) -> Translation:
            return await self.translate(text, **options)

        return in_order_async(texts, one, concurrency)

    async def _sse(self, call: Call[Any]) -> AsyncGenerator[ServerSentEvent]:
        async with (
            self._transport.stream(call) as response,
            aclosing(EventSource(response).aiter_sse()) as events,
        ):
            async for event in events:
                yield event
