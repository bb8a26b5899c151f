"""When a call is sent again, and after what time. Knows no clock and no network."""

import email.utils
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from httpx_sse import SSEError

from dragoman.calls import Call
from dragoman.errors import (
    ConnectionFailedError,
    DragomanError,
    TimedOutError,
    UnexpectedAnswerError,
    from_response,
)

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0
_NOT_NOW = {429, 503}


@dataclass(frozen=True)
class RetryPolicy:
    """At most `max_retries` times; a server that asks for a wait of more than `max_wait_s` is not waited for."""

    max_retries: int = 4
    max_wait_s: float = 60.0

    def after_response(
        self, call: Call[Any], response: httpx.Response, attempt: int
    ) -> float | None:
        """None: this is the answer. Else seconds to wait before the next attempt. Raises ApiError."""
        if response.status_code < 400 or response.status_code in call.accepted:
            return None
        asked_s = retry_after_s(response)
        wait_s = backoff_s(attempt) if asked_s is None else asked_s
        may_retry = attempt < self.max_retries and wait_s <= self.max_wait_s
        # Nothing was done, so that any call may come again.
        if response.status_code in _NOT_NOW and may_retry:
            return wait_s
        raise from_response(response, asked_s)

    def after_failure(self, call: Call[Any], error: httpx.TransportError, attempt: int) -> float:
        """Seconds to wait before the next attempt. Raises ConnectionFailedError or TimedOutError."""
        # A slow answer is not asked for twice: the server may still be at work on the first.
        slow = isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout))
        if call.idempotent and not slow and attempt < self.max_retries:
            return backoff_s(attempt)
        raise describe_failure(error) from error


def describe_failure(error: httpx.TransportError) -> DragomanError:
    if isinstance(error, SSEError):
        return UnexpectedAnswerError(f"what answered is no Dragoman server: {error}")
    url = error.request.url
    where = f"{url.scheme}://{url.netloc.decode()}"
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOutError(f"{where} did not answer {error.request.method} {url.path} in time")
    reason = str(error) or type(error).__name__
    return ConnectionFailedError(f"cannot reach {where}: {reason}")


def backoff_s(attempt: int) -> float:
    """Twice as long each time, with some chance in it, so that many clients do not come back as one."""
    wait_s = min(_FIRST_WAIT_S * 2.0**attempt, _LONGEST_WAIT_S)
    return wait_s * random.uniform(0.5, 1.0)  # noqa: S311  no secret


def retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After, which is seconds or a date (RFC 9110)."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
