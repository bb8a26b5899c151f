from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from dragoman.calls import Call, read_nothing
from dragoman.errors import ApiError
from dragoman.retries import RetryPolicy, backoff_s, retry_after_s

CALL = Call("GET", "/x", read_nothing)


def answer(status: int, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx.Request("GET", "http://server/x")
    return httpx.Response(status, headers=named, json={}, request=request)


def test_an_answer_is_an_answer() -> None:
    assert RetryPolicy().after_response(CALL, answer(200), 0) is None


def test_the_server_says_how_long_to_wait() -> None:
    assert RetryPolicy().after_response(CALL, answer(503, retry_after="7"), 0) == 7
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    longest = moment - datetime.now(UTC)
    asked = retry_after_s(answer(429, retry_after=format_datetime(moment, usegmt=True)))
    assert asked is not None
    assert (moment - datetime.now(UTC)).total_seconds() <= asked <= longest.total_seconds()


def test_a_moment_of_no_time_zone_is_one_of_utc() -> None:
    assert retry_after_s(answer(503, retry_after="Sun, 06 Nov 1994 08:49:37 -0000")) == 0


@pytest.mark.parametrize("value", ["", "soon", "-1", "1e9"])
def test_nonsense_is_no_wait(value: str) -> None:
    assert retry_after_s(answer(503, retry_after=value)) is None


def test_waits_grow_to_a_limit() -> None:
    assert backoff_s(0) <= 0.5 < backoff_s(3) <= 4 <= backoff_s(9) <= 8


def test_other_errors_are_not_repeated() -> None:
    for status in (400, 404, 409, 422, 500):
        with pytest.raises(ApiError):
            RetryPolicy().after_response(CALL, answer(status), 0)


def test_a_503_may_be_the_answer() -> None:
    call = Call("GET", "/ready", read_nothing, accepted=frozenset({503}))
    assert RetryPolicy().after_response(call, answer(503), 0) is None
