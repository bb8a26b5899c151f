"""Jobs through the client, trained by the real worker."""

import asyncio
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import dragoman
from tests.dragoman.conftest import YODA
from tests.dragoman.servers import CuttingProxy, Reply, ScriptedServer, never, problem
from tests.standstill import standing_still

CONFIG = {
    "source": "en",
    "target": "en-x-client",
    "training": {"max_steps": 6, "logging_steps": 1},
    "evaluation": {"holdout": 4, "promote": "always"},
}


@pytest.fixture(scope="module")
def trained(service_url: str) -> Iterator[dragoman.Job]:
    """One run from a file to the end."""
    with dragoman.Client(service_url) as client:
        job = client.jobs.create("client-made", file=YODA, config=CONFIG)
        assert job.status == "queued"
        yield job.wait()


def test_a_file_becomes_an_adapter(client: dragoman.Client, trained: dragoman.Job) -> None:
    assert trained.status == "succeeded"
    assert trained.ended
    assert trained.adapter_version == 1
    assert [p.step for p in trained.loss_curve.train] == [1, 2, 3, 4, 5, 6]
    assert trained.evaluation is not None
    assert trained.evaluation.candidate.bleu >= 0
    assert trained.config["training"]["max_steps"] == 6
    assert client.translate("I am tall.", adapter="client-made").adapter == "client-made@1"
    assert "training" in client.jobs.log(trained.id)
    assert client.jobs.curve_svg(trained.id).lstrip().startswith(("<?xml", "<svg"))
    assert client.jobs.get(trained.id, after_step=4).loss_curve.train[0].step == 5


def test_the_list_finds_it(client: dragoman.Client, trained: dragoman.Job) -> None:
    found = client.jobs.list(adapter="client-made", status="succeeded")
    assert [job.id for job in found] == [trained.id]
    assert (
        client.jobs.list(limit=100, after=trained.id)
        == client.jobs.list(limit=100)[
            [job.id for job in client.jobs.list(limit=100)].index(trained.id) + 1 :
        ]
    )


def test_events_come_whole_over_a_line_that_breaks(
    client: dragoman.Client, trained: dragoman.Job, proxy: CuttingProxy
) -> None:
    events = list(client.jobs.events(trained.id))
    assert events[-1].kind == "done"
    assert events[-1].data["status"] == "succeeded"
    proxy.cuts, proxy.cut_after = 3, 1500
    with dragoman.Client(proxy.url) as cut:
        assert list(cut.jobs.events(trained.id)) == events
    assert proxy.num_cut == 3


def test_the_async_client_does_the_same(
    client: dragoman.Client, trained: dragoman.Job, proxy: CuttingProxy
) -> None:
    proxy.cuts, proxy.cut_after = 2, 1500

    async def follow() -> tuple[list[dragoman.JobEvent], dragoman.Job]:
        async with dragoman.AsyncClient(proxy.url) as cut:
            events = [event async for event in cut.jobs.events(trained.id)]
            job = await cut.jobs.wait(trained)
            with pytest.raises(TypeError, match=r"await client\.jobs\.wait"):
                job.wait()
            return events, job

    events, job = asyncio.run(follow())
    assert events == list(client.jobs.events(trained.id))
    assert job.status == "succeeded"


def test_events_go_on_where_one_left(client: dragoman.Client, trained: dragoman.Job) -> None:
    events = list(client.jobs.events(trained.id))
    middle = events[len(events) // 2]
    rest = list(client.jobs.events(trained.id, last_event_id=middle.id))
    assert rest == events[len(events) // 2 + 1 :]
    after_the_last = list(client.jobs.events(trained.id, last_event_id=events[-1].id))
    assert [(e.kind, e.data["status"]) for e in after_the_last] == [("done", "succeeded")]


def test_a_key_makes_two_calls_one_job(client: dragoman.Client, trained: dragoman.Job) -> None:
    def submit() -> str:
        job = client.jobs.create(
            "client-twice",
            dataset_id=trained.dataset_id,
            config={"training": {"num_train_epochs": 500}},
            idempotency_key="client-key",
        )
        return job.id

    first = submit()
    assert submit() == first
    with pytest.raises(dragoman.TimedOutError):
        client.jobs.wait(first, timeout_s=0.5)
    client.jobs.cancel(first)
    assert client.jobs.wait(first).status == "cancelled"
    with pytest.raises(dragoman.ConflictError):
        client.jobs.cancel(first)


def wait_until(client: dragoman.Client, job_id: str, is_so: Callable[[dragoman.Job], bool]) -> None:
    deadline = time.monotonic() + 180
    while not is_so(job := client.jobs.get(job_id)):
        assert not job.ended, job.error
        assert time.monotonic() < deadline, job.status
        time.sleep(0.02)


def test_paused_resumed_and_deleted(client: dragoman.Client, trained: dragoman.Job) -> None:
    training = {"max_steps": 20, "logging_steps": 1, "per_device_train_batch_size": 4}
    config = CONFIG | {"training": training}
    job = client.jobs.create(
        "client-paused", dataset_id=trained.dataset_id, config=config, priority="high"
    )
    assert job.priority == "high"
    with pytest.raises(dragoman.ConflictError):
        client.jobs.resume(job.id)
    wait_until(client, job.id, lambda job: job.progress.step > 0)
    with standing_still():
        assert client.jobs.pause(job.id).status in ("pausing", "paused")
    wait_until(client, job.id, lambda job: job.status == "paused")
    kept = client.jobs.get(job.id).progress.step
    assert 0 < kept < 20
    with pytest.raises(dragoman.ConflictError):
        client.jobs.delete(job.id)
    assert client.jobs.resume(job.id).status == "queued"
    ended = job.wait()
    assert (ended.status, ended.adapter_version) == ("succeeded", 1)
    assert [p.step for p in ended.loss_curve.train] == list(range(1, 21)), "none twice, none lost"
    assert "paused" in [e.data.get("status") for e in client.jobs.events(job.id)]

    client.jobs.delete(job.id)
    for ask in (client.jobs.get, client.jobs.delete, client.jobs.pause):
        with pytest.raises(dragoman.NotFoundError):
            ask(job.id)
    with pytest.raises(dragoman.NotFoundError):
        list(client.jobs.events(job.id))
    assert client.adapters.get("client-paused").versions == [1], "what it published stays"


def test_a_paused_job_is_cancelled_and_published(
    service_url: str, client: dragoman.Client, trained: dragoman.Job
) -> None:
    config = CONFIG | {"training": {"max_steps": 2000, "logging_steps": 1}}

    async def work() -> dragoman.Job:
        async with dragoman.AsyncClient(service_url) as steering:
            job = await steering.jobs.create(
                "client-cut", dataset_id=trained.dataset_id, config=config
            )
            await asyncio.to_thread(wait_until, client, job.id, lambda job: job.progress.step > 0)
            await steering.jobs.pause(job.id)
            await asyncio.to_thread(wait_until, client, job.id, lambda job: job.status == "paused")
            await steering.jobs.cancel(job.id, publish=True)
            return await steering.jobs.wait(job)

    ended = asyncio.run(work())
    assert ended.adapter_version == 1
    assert client.translate("I am tall.", adapter="client-cut@1").adapter == "client-cut@1"


def test_a_bad_file_is_refused_with_its_lines(client: dragoman.Client, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,completion\nfine,fine too\nno target,\n")
    with pytest.raises(dragoman.InvalidError) as caught:
        client.jobs.create("client-bad", file=bad)
    assert caught.value.code == "dataset_invalid"
    assert caught.value.extra["report"]["errors"][0]["line"] == 3
    with pytest.raises(FileNotFoundError):
        client.jobs.create("client-bad", file=tmp_path / "nothing.csv")


def test_a_wrong_setting_is_named(client: dragoman.Client) -> None:
    with pytest.raises(dragoman.InvalidError) as caught:
        client.jobs.create("x", file=YODA, config={"training": {"learning_rat": 1}})
    assert "learning_rat" in str(caught.value)


def test_unknown_jobs(client: dragoman.Client) -> None:
    for ask in (client.jobs.get, client.jobs.log, client.jobs.cancel, client.jobs.wait):
        with pytest.raises(dragoman.NotFoundError):
            ask("job-nobody")


def job_answer(status: str, **more: Any) -> Reply:
    job = {"id": "j", "adapter": "a", "dataset_id": "d", "created_at": "2030-01-01T00:00:00Z"}
    return Reply(body=job | {"status": status} | more)


def test_a_failed_job_is_an_error(scripted: ScriptedServer) -> None:
    error = {"code": "out_of_memory", "message": "too big"}
    stream = {"content-type": "text/event-stream"}
    done = Reply(body='event: done\nid: 1-0\ndata: {"status": "failed"}\n\n', headers=stream)
    scripted.replies = [done, job_answer("failed", error=error)]
    with (
        dragoman.Client(scripted.url) as client,
        pytest.raises(dragoman.JobFailedError, match=r"too big.*out_of_memory") as caught,
    ):
        client.jobs.wait("j")
    assert caught.value.job.error is not None


def test_a_server_that_stays_away_is_an_error(scripted: ScriptedServer, unused_url: str) -> None:
    with (
        dragoman.Client(unused_url, max_retries=0) as client,
        pytest.raises(dragoman.ConnectionFailedError),
    ):
        list(client.jobs.events("j", reconnect_s=0.2))
    scripted.replies = [problem(503, "redis_unavailable")]
    with (
        dragoman.Client(scripted.url, max_retries=0) as client,
        pytest.raises(dragoman.UnavailableError),
    ):
        list(client.jobs.events("j", reconnect_s=0.2))


def test_a_server_that_does_not_answer_is_asked_again(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dragoman.events.STREAM_TIMEOUT", httpx.Timeout(0.3, connect=60))
    stream = {"content-type": "text/event-stream"}
    done = Reply(body='event: done\nid: 1-0\ndata: {"status": "succeeded"}\n\n', headers=stream)
    silence = dataclasses.replace(done, after=never)
    scripted.replies = [silence, done]
    with dragoman.Client(scripted.url) as client:
        assert [event.kind for event in client.jobs.events("j")] == ["done"]
    assert len(scripted.seen) > 1
    scripted.replies = [silence]
    with dragoman.Client(scripted.url) as client, pytest.raises(dragoman.TimedOutError):
        list(client.jobs.events("j", reconnect_s=0.2))


def test_not_a_stream(scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(body="<html>")]
    with dragoman.Client(scripted.url) as client, pytest.raises(dragoman.UnexpectedAnswerError):
        list(client.jobs.events("j"))
    with dragoman.Client(scripted.url) as client, pytest.raises(dragoman.UnexpectedAnswerError):
        list(client.translate("x", stream=True))


@pytest.mark.parametrize("data", ['{"progress": {"st', '["running"]', "<html>"])
def test_a_broken_event_of_a_job_is_named(scripted: ScriptedServer, data: str) -> None:
    stream = {"content-type": "text/event-stream"}
    scripted.replies = [Reply(body=f"event: metrics\ndata: {data}\n\n", headers=stream)]
    expected = re.escape(f"'metrics' holds {data!r}")
    with (
        dragoman.Client(scripted.url) as client,
        pytest.raises(dragoman.UnexpectedAnswerError, match=expected),
    ):
        list(client.jobs.events("j"))

    async def follow() -> list[dragoman.JobEvent]:
        async with dragoman.AsyncClient(scripted.url) as following:
            return [event async for event in following.jobs.events("j")]

    with pytest.raises(dragoman.UnexpectedAnswerError, match=expected):
        asyncio.run(follow())
    assert len(scripted.seen) == 2, "asked again, it would say the same"
