import asyncio
import time

import pytest

import dragoman
from dragoman.errors import (
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    ForbiddenError,
    TimedOutError,
    UnavailableError,
    UnexpectedAnswerError,
)
from tests.dragoman.servers import Reply, ScriptedServer, never, problem, translated

NOT_NOW = Reply(503, {"status": 503, "code": "queue_full", "detail": "full"}, {"Retry-After": "0"})


def test_a_busy_server_is_asked_again(scripted: ScriptedServer) -> None:
    scripted.replies = [NOT_NOW, NOT_NOW, translated("fine")]
    with dragoman.Client(scripted.url) as client:
        assert client.translate("x").text == "fine"
    assert len(scripted.seen) == 3


def test_so_does_the_async_client(scripted: ScriptedServer) -> None:
    scripted.replies = [NOT_NOW, Reply(breaks=True), translated("fine")]

    async def ask() -> str:
        async with dragoman.AsyncClient(scripted.url) as client:
            return (await client.translate("x")).text

    assert asyncio.run(ask()) == "fine"
    assert len(scripted.seen) == 3


def test_retries_come_to_an_end(scripted: ScriptedServer) -> None:
    scripted.replies = [NOT_NOW]
    with (
        dragoman.Client(scripted.url, max_retries=2) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.translate("x")
    assert len(scripted.seen) == 3
    assert (caught.value.status, caught.value.code) == (503, "queue_full")


def test_a_wait_of_hours_is_told_and_not_waited(scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(429, {"code": "quota"}, {"Retry-After": "7200"})]
    with (
        dragoman.Client(scripted.url) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.translate("x")
    assert caught.value.retry_after_s == 7200


def test_a_broken_connection_is_tried_again(scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(breaks=True), translated("fine")]
    with dragoman.Client(scripted.url) as client:
        assert client.translate("x").text == "fine"


def test_but_not_for_what_must_not_happen_twice(scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(breaks=True)]
    with dragoman.Client(scripted.url) as client:
        with pytest.raises(ConnectionFailedError):
            client.jobs.cancel("job-1")
        assert len(scripted.seen) == 1
        with pytest.raises(ConnectionFailedError):
            client.adapters.import_(b"zip", "mine", filename="a.zip")
        assert len(scripted.seen) == 2


def test_a_new_job_is_sent_again_with_its_key(scripted: ScriptedServer) -> None:
    job = {
        "id": "job-1",
        "adapter": "a",
        "dataset_id": "ds",
        "status": "queued",
        "created_at": "2030-01-01T00:00:00Z",
    }
    scripted.replies = [Reply(breaks=True), Reply(202, job)]
    with dragoman.Client(scripted.url) as client:
        client.jobs.create("a", file=b"source,target\n", filename="a.csv")
        first, second = scripted.seen
        assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
        assert b"source,target" in second.body
        client.jobs.create("a", dataset_id="ds")
    assert scripted.seen[2].headers["Idempotency-Key"] != first.headers["Idempotency-Key"]


def test_no_server(unused_url: str) -> None:
    with (
        dragoman.Client(unused_url, max_retries=1) as client,
        pytest.raises(ConnectionFailedError, match=unused_url),
    ):
        client.adapters.list()


def test_a_slow_answer_is_not_asked_for_twice(scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(body=[], after=never), Reply(body=[])]
    with (
        dragoman.Client(scripted.url, timeout_s=0.5) as client,
        pytest.raises(TimedOutError, match="/adapters"),
    ):
        client.adapters.list()
    deadline = time.monotonic() + 60
    while not scripted.seen:  # a busy server may see the question after it was given up
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(scripted.seen) == 1


def test_the_key_is_a_bearer_token(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.replies = [Reply(body=[])]
    with dragoman.Client(scripted.url, api_key="k-1") as client:
        client.adapters.list()
    monkeypatch.setenv("DRAGOMAN_API_KEY", "k-2")
    monkeypatch.setenv("DRAGOMAN_URL", scripted.url)
    with dragoman.Client() as client:
        client.adapters.list()
    assert [s.headers.get("Authorization") for s in scripted.seen] == ["Bearer k-1", "Bearer k-2"]


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthenticationError), (403, ForbiddenError), (500, ApiError)]
)
def test_each_refusal_has_its_exception(
    scripted: ScriptedServer, status: int, kind: type[ApiError]
) -> None:
    errors = [{"loc": ["body", "q"], "msg": "too odd"}]
    scripted.replies = [problem(status, "some_code", "what is wrong", errors=errors, more=[1])]
    with dragoman.Client(scripted.url) as client, pytest.raises(kind) as caught:
        client.adapters.list()
    error = caught.value
    assert (error.status, error.code, error.detail) == (status, "some_code", "what is wrong")
    assert error.errors == errors
    assert error.extra == {"more": [1]}


def test_a_proxy_in_between_answers_with_html(scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(502, "<html>Bad Gateway</html>")]
    with dragoman.Client(scripted.url) as client, pytest.raises(ApiError, match="502"):
        client.adapters.list()


@pytest.mark.parametrize("body", ["<html>hello</html>", {"some": "thing"}])
def test_another_server_is_told_apart(scripted: ScriptedServer, body: object) -> None:
    scripted.replies = [Reply(body=body)]
    with (
        dragoman.Client(scripted.url) as client,
        pytest.raises(UnexpectedAnswerError, match="adapters"),
    ):
        client.adapters.list()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[::1"])
def test_an_odd_url_is_named(url: str) -> None:
    with pytest.raises(dragoman.DragomanError, match="url"):
        dragoman.Client(url)
