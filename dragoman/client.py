"""The blocking client."""

import time
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

from httpx_sse import EventSource, ServerSentEvent

from dragoman.adapters import Adapters
from dragoman.calls import Call
from dragoman.datasets import Datasets
from dragoman.endpoint import Resource
from dragoman.errors import ConnectionFailedError, TimedOutError
from dragoman.jobs import Jobs
from dragoman.models import Readiness, Translation, Translations
from dragoman.suggestions import Suggestions
from dragoman.system import SystemEndpoints
from dragoman.translate_file import FileReport, FileTranslation, OnLine
from dragoman.translate_many import Line, Numbered, in_order
from dragoman.translation import TranslateOptions, TranslationStream, kind_of, translate_call
from dragoman.transport import Connection, Transport


class Client(SystemEndpoints, Resource):
    """Speaks to one server; safe from any thread. Close it, or use it as a context manager.

    `url` and `api_key` default to DRAGOMAN_URL (else http://127.0.0.1:8000) and DRAGOMAN_API_KEY. `timeout_s` is the
    longest wait for an answer. A server that is busy, or a connection that broke, is tried again `max_retries`
    times, a request that is not safe to repeat only where the server says so.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 4,
    ) -> None:
        connection = Connection.of(url, api_key, timeout_s, max_retries)
        super().__init__(Transport(connection))
        self.url = connection.url
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.adapters = Adapters(self._transport)
        self.suggestions = Suggestions(self._transport)

    @overload
    def translate(
        self, q: str, *, stream: Literal[False] = False, **options: Unpack[TranslateOptions]
    ) -> Translation: ...
    @overload
    def translate(
        self,
        q: list[str],
        *,
        stream: Literal[False] = False,
        **options: Unpack[TranslateOptions],
    ) -> Translations: ...
    @overload
    def translate(
        self, q: str, *, stream: Literal[True], **options: Unpack[TranslateOptions]
    ) -> TranslationStream[Translation]: ...
    @overload
    def translate(
        self, q: list[str], *, stream: Literal[True], **options: Unpack[TranslateOptions]
    ) -> TranslationStream[Translations]: ...
    def translate(
        self, q: str | list[str], *, stream: bool = False, **options: Unpack[TranslateOptions]
    ) -> Any:
        """Translates a text, or a list of texts in one request.

        `stream`: returns at once an iterator of tokens, which has the whole as `.result` in the end.
        Raises NotFoundError for an adapter or a language pair that does not exist, InvalidError.
        """
        call = translate_call(q, options, stream=stream)
        if stream:
            return TranslationStream(kind_of(q), self._sse(call))
        return self._transport.send(call)

    def translate_many(
        self, texts: Iterable[str], *, concurrency: int = 16, **options: Unpack[TranslateOptions]
    ) -> Generator[Line]:
        """Each text with its translation, in order, `concurrency` at a time; `texts` may be endless.

        What the server refuses is reported in its line. What concerns all of them is raised: no such adapter, no
        server.
        """
        return self._translate_numbered(enumerate(texts, 1), concurrency, options)

    def translate_file(
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
            with closing(self._translate_numbered(work.remaining(), concurrency, options)) as lines:
                for line in lines:
                    work.note(line)
                    if on_line:
                        on_line(line)
            return work.finish()

    def wait_until_ready(self, timeout_s: float = 120.0) -> Readiness:
        """Returns once the server has its model, Redis and volume. Raises TimedOutError, which says what is missing."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                state = self.ready()
                missing = state.describe()
            except ConnectionFailedError as error:
                state, missing = None, str(error)
            if state and state.ok:
                return state
            if time.monotonic() > deadline:
                raise TimedOutError(f"not ready after {timeout_s:.0f} s: {missing}")
            time.sleep(0.2)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _translate_numbered(
        self, texts: Iterable[Numbered], concurrency: int, options: TranslateOptions
    ) -> Generator[Line]:
        def one(text: str) -> Translation:
            return self.translate(text, **options)

        return in_order(texts, one, concurrency)

    def _sse(self, call: Call[Any]) -> Generator[ServerSentEvent]:
        with self._transport.stream(call) as response:
            yield from EventSource(response).iter_sse()
