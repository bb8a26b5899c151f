"""A method that says what to call; on a blocking client it returns the answer, on an async one an awaitable of it."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from dragoman.calls import Call
from dragoman.transport import AsyncTransport, Transport

P = ParamSpec("P")
T = TypeVar("T")


class Resource:
    """What a blocking client offers of one noun."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _received(self, answer: Any) -> Any:
        """What callers get instead of `answer`."""
        return answer


class AsyncResource:
    """What an async client offers of one noun."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport


class endpoint(Generic[P, T]):  # noqa: N801  a decorator
    """Written once for both clients: the method builds a Call, the client's transport sends it."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, resource: None, owner: type) -> Self: ...
    @overload
    def __get__(self, resource: Resource, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, resource: AsyncResource, owner: type
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, resource: Resource | AsyncResource | None, owner: type) -> Any:
        if resource is None:
            return self

        @wraps(self._build)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            answer = resource._transport.send(self._build(resource, *args, **kwargs))
            return resource._received(answer) if isinstance(resource, Resource) else answer

        return call
