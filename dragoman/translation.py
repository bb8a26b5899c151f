"""One translation request, and its answer as a stream of tokens."""

from collections.abc import AsyncGenerator, Generator
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar

from httpx_sse import ServerSentEvent

from dragoman.calls import Call, read_nothing, reads, reads_event
from dragoman.errors import UnexpectedAnswerError, from_problem
from dragoman.models import Answer, Token, Translation, Translations

Result = TypeVar("Result", bound=Answer)


class TranslateOptions(TypedDict, total=False):
    """What POST /translate takes beside the text. Name an `adapter`, or a language pair that chooses one."""

    adapter: str | None
    source: str | None
    target: str | None
    format: Literal["text", "html"]
    alternatives: int
    max_new_tokens: int | None
    temperature: float | None
    top_p: float
    top_k: int
    seed: int | None
    stop: str | list[str]


def translate_call(
    q: str | list[str], options: TranslateOptions, *, stream: bool = False
) -> Call[Any]:
    body: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    body["q"] = q
    if stream:
        return Call("POST", "/translate", read_nothing, json=body | {"stream": True})
    return Call("POST", "/translate", reads(kind_of(q)), json=body)


def kind_of(q: str | list[str]) -> type[Translation] | type[Translations]:
    return Translation if isinstance(q, str) else Translations


class _Failure(Answer):
    """A problem document that comes after the status line."""

    status: int


_read_token = reads_event(Token)
_read_failure = reads_event(_Failure)


class _StreamState(Generic[Result]):
    """`result`: the whole answer, there once the stream has ended."""

    def __init__(self, kind: type[Result]) -> None:
        self.result: Result | None = None
        self._read_result = reads_event(kind)

    def _take(self, event: ServerSentEvent) -> Token | None:
        """Raises ApiError where the server failed in the middle; UnexpectedAnswerError."""
        if event.event == "token":
            return _read_token(event)
        if event.event == "done":
            self.result = self._read_result(event)
        elif event.event == "error":
            failure = _read_failure(event)
            raise from_problem(failure.status, failure.model_dump())
        return None

    def _check_whole(self) -> None:
        if self.result is None:
            raise UnexpectedAnswerError("the stream ended in the middle of the translation")


class TranslationStream(_StreamState[Result]):
    """Iterate over it for tokens. Left early, it is closed at the end of its `with`."""

    def __init__(self, kind: type[Result], events: Generator[ServerSentEvent]) -> None:
        super().__init__(kind)
        self._events = events

    def __iter__(self) -> Generator[Token]:
        for event in self._events:
            if token := self._take(event):
                yield token
        self._check_whole()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()


class AsyncTranslationStream(_StreamState[Result]):
    """Iterate over it for tokens. Left early, it is closed at the end of its `async with`."""

    def __init__(self, kind: type[Result], events: AsyncGenerator[ServerSentEvent]) -> None:
        super().__init__(kind)
        self._events = events

    async def __aiter__(self) -> AsyncGenerator[Token]:
        async for event in self._events:
            if token := self._take(event):
                yield token
        self._check_whole()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._events.aclose()
