"""Sends calls over httpx, with retries: one class that blocks, one for asyncio, alike line by line."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import httpx

from dragoman.calls import Call
from dragoman.errors import UnsendableError
from dragoman.retries import RetryPolicy, describe_failure

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT_S = 5.0
# A stream that is silent for longer than several heartbeats (15 s) is dead.
STREAM_TIMEOUT = httpx.Timeout(60.0, connect=_CONNECT_TIMEOUT_S)
# A file is checked row by row before the answer: 100,000 pairs take 17 s on two cores.
UPLOAD_TIMEOUT = httpx.Timeout(900.0, connect=_CONNECT_TIMEOUT_S)


@dataclass(frozen=True)
class Connection:
    """Where the server is, and how patiently it is spoken to. `timeout_s`: longest wait for an answer."""

    url: str
    api_key: str | None
    timeout_s: float
    retries: RetryPolicy

    @classmethod
    def of(
        cls, url: str | None, api_key: str | None, timeout_s: float, max_retries: int
    ) -> "Connection":
        """What is not given comes from DRAGOMAN_URL and DRAGOMAN_API_KEY. Raises UnsendableError."""
        chosen = url or os.environ.get("DRAGOMAN_URL") or DEFAULT_URL
        try:
            parsed = httpx.URL(chosen)
        except httpx.InvalidURL as error:
            raise UnsendableError(f"url {chosen!r} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UnsendableError(f"url {chosen!r} is not valid; send one such as {DEFAULT_URL}")
        key = api_key or os.environ.get("DRAGOMAN_API_KEY") or None
        if key and not (key.isascii() and key.isprintable()):
            raise UnsendableError("the API key holds what no header can; send visible ASCII alone")
        return cls(chosen.rstrip("/"), key, timeout_s, RetryPolicy(max_retries))

    def options(self) -> dict[str, Any]:
        """For httpx' clients."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {
            "base_url": self.url,
            "headers": headers,
            "timeout": httpx.Timeout(self.timeout_s, connect=_CONNECT_TIMEOUT_S, pool=None),
            # translate_many opens as many as it is asked for; the server says when it has enough.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
        }


class Transport:
    """Safe from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._retries = connection.retries
        self._http = httpx.Client(**connection.options())

    def send(self, call: Call[T]) -> T:
        return call.read(self._respond(call, stream=False))

    @contextmanager
    def stream(self, call: Call[Any]) -> Iterator[httpx.Response]:
        """The answer while its body is still coming. Left early, the connection is closed.

        Raises ConnectionFailedError or TimedOutError where it breaks off.
        """
        response = self._respond(call, stream=True)
        try:
            yield response
        except httpx.TransportError as error:
            raise describe_failure(error) from error
        finally:
            response.close()

    def close(self) -> None:
        self._http.close()

    def _respond(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        for attempt in count():
            try:
                with call.arguments() as arguments:
                    request = build(self._http, arguments)
                    response = self._http.send(request, stream=stream)
                if stream and response.is_error:
                    response.read()
            except httpx.TransportError as error:
                wait_s = self._retries.after_failure(call, error, attempt)
            else:
                pause_s = self._retries.after_response(call, response, attempt)
                if pause_s is None:
                    return response
                wait_s = pause_s
            time.sleep(wait_s)
        raise AssertionError


class AsyncTransport:
    """For one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._retries = connection.retries
        self._http = httpx.AsyncClient(**connection.options())

    async def send(self, call: Call[T]) -> T:
        return call.read(await self._respond(call, stream=False))

    @asynccontextmanager
    async def stream(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        """The answer while its body is still coming. Left early, the connection is closed.

        Raises ConnectionFailedError or TimedOutError where it breaks off.
        """
        response = await self._respond(call, stream=True)
        try:
            yield response
        except httpx.TransportError as error:
            raise describe_failure(error) from error
        finally:
            await response.aclose()

    async def close(self) -> None:
        await self._http.aclose()

    async def _respond(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        for attempt in count():
            try:
                with call.arguments() as arguments:
                    request = build(self._http, arguments)
                    response = await self._http.send(request, stream=stream)
                if stream and response.is_error:
                    await response.aread()
            except httpx.TransportError as error:
                wait_s = self._retries.after_failure(call, error, attempt)
            else:
                pause_s = self._retries.after_response(call, response, attempt)
                if pause_s is None:
                    return response
                wait_s = pause_s
            await asyncio.sleep(wait_s)
        raise AssertionError


def build(http: httpx.Client | httpx.AsyncClient, arguments: dict[str, Any]) -> httpx.Request:
    """Raises UnsendableError."""
    try:
        return http.build_request(**arguments)
    except ValueError as error:  # NaN, infinity, half a surrogate pair; a header beyond ASCII
        raise UnsendableError(f"this cannot be sent: {error}") from error
