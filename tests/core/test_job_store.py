"""Job records on a real Redis: who may move a job where, and what happens when a worker or a message is lost."""

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from core.errors import ConflictError, NotFoundError, UnavailableError
from core.job_store import Claim, JobStore, LeaseLostError, events_key
from core.jobs import (
    ENDED,
    Evaluation,
    Job,
    JobError,
    JobStatus,
    Priority,
    Progress,
    Sample,
    Scores,
    TrainPoint,
)
from core.metrics import Metric
from core.queue import TRAINING_QUEUE
from core.training_config import JobConfig

LEASE_S = 0.3
S = JobStatus
EVALUATION = Evaluation(
    metric="bleu",
    rows=18,
    against="base",
    base=Scores(bleu=18.2, chrf=65.8),
    current=None,
    candidate=Scores(bleu=57.1, chrf=75.1),
    gain=38.9,
    p_value=0.001,
    promoted=True,
    reason="Made current: it is better.",
    samples=[
        Sample(source="The sky is dark.", reference="Dark, the sky is.", base="x", candidate="y")
    ],
)


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis, lease_s=LEASE_S, max_attempts=2)


@pytest.fixture
def patient(redis: Redis) -> JobStore:
    """With a lease that no test outlives."""
    return JobStore(redis, lease_s=600, max_attempts=2)


def new_job(job_id: str = "a", *, age_s: float = 0, adapter: str = "yoda") -> Job:
    created_at = datetime.now(UTC) - timedelta(seconds=age_s)
    return Job(
        id=job_id,
        adapter=adapter,
        dataset_id=f"dataset-of-{job_id}",
        config=JobConfig(),
        created_at=created_at,
    )


def claimed(store: JobStore, job_id: str = "a") -> Claim:
    store.create(new_job(job_id), max_queued=10)
    claim = store.claim(job_id)
    assert claim
    return claim


def statuses_told(redis: Redis, job_id: str = "a") -> list[str]:
    """All that a client of GET /jobs/{id}/events was told."""
    entries = redis.xrange(events_key(job_id))
    return [json.loads(e["data"])["status"] for _, e in entries if e["type"] == "status"]


class TestCreate:
    def test_what_was_written_is_read(self, store: JobStore) -> None:
        job = new_job().model_copy(update={"warnings": ["a warning"]})
        created = store.create(job, max_queued=1)
        assert created == job
        assert store.get("a") == job
        assert created.status == S.QUEUED

    def test_unknown_job(self, store: JobStore) -> None:
        with pytest.raises(NotFoundError, match="'nobody' does not exist") as caught:
            store.get("nobody")
        assert caught.value.code == "job_not_found"

    def test_same_idempotency_key_same_job(self, store: JobStore) -> None:
        first = store.create(new_job("a"), max_queued=10, idempotency_key="k")
        again = store.create(new_job("b"), max_queued=10, idempotency_key="k")
        other = store.create(new_job("c"), max_queued=10, idempotency_key="l")
        assert (first.id, again.id, other.id) == ("a", "a", "c")
        assert [j.id for j in store.find()] == ["c", "a"]

    def test_same_key_at_the_same_time(self, store: JobStore) -> None:
        made: list[str] = []

        def create(number: int) -> None:
            made.append(store.create(new_job(f"j{number}"), max_queued=99, idempotency_key="k").id)

        threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 1
        assert len(store.find()) == 1

    def test_queue_is_bounded(self, store: JobStore) -> None:
        for name in ("a", "b"):
            store.create(new_job(name), max_queued=2, idempotency_key=name)
        with pytest.raises(UnavailableError) as caught:
            store.create(new_job("c"), max_queued=2, idempotency_key="c")
        assert (caught.value.code, caught.value.status_code) == ("queue_full", 503)
        assert caught.value.retry_after_s
        # A retry of what was accepted is no new job.
        assert store.create(new_job("z"), max_queued=2, idempotency_key="a").id == "a"
        # What is claimed waits no more.
        assert store.claim("a")
        assert store.create(new_job("c"), max_queued=2, idempotency_key="c").id == "c"

    def test_refused_job_leaves_nothing(self, store: JobStore, redis: Redis) -> None:
        with pytest.raises(UnavailableError):
            store.create(new_job(), max_queued=0, idempotency_key="k")
        assert redis.keys("*") == []


class TestFind:
    def test_newest_first_in_pages(self, store: JobStore) -> None:
        for age_s, name in enumerate("abcde"):
            store.create(new_job(name, age_s=age_s, adapter=f"x{name}"), max_queued=10)
        page = store.find(limit=2)
        assert [j.id for j in page] == ["a", "b"]
        assert [j.id for j in store.find(limit=2, after="b")] == ["c", "d"]
        assert [j.id for j in store.find(limit=2, after="e")] == []
        assert [j.id for j in store.find(adapter="xc")] == ["c"]

    def test_by_status(self, store: JobStore) -> None:
        claimed(store, "a")
        store.create(new_job("b"), max_queued=10)
        assert [j.id for j in store.find(status=S.PREPARING)] == ["a"]
        assert [j.id for j in store.find(status=S.QUEUED)] == ["b"]
        assert store.count_open() == {"preparing": 1, "queued": 1}
        store.cancel("b")
        assert store.count_open() == {"preparing": 1}

    def test_dataset_is_in_use_until_the_job_ends(self, store: JobStore) -> None:
        store.create(new_job("a"), max_queued=10)
        assert store.uses_dataset("dataset-of-a")
        assert not store.uses_dataset("dataset-of-b")
        store.cancel("a")
        assert not store.uses_dataset("dataset-of-a")


class TestClaim:
    def test_one_claimant(self, patient: JobStore) -> None:
        patient.create(new_job(), max_queued=10)
        claims: list[Claim | None] = []
        threads = [
            threading.Thread(target=lambda: claims.append(patient.claim("a"))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = [c for c in claims if c]
        assert len(held) == 1
        job = held[0].job
        assert (job.status, job.attempt) == (S.PREPARING, 1)
        assert job.started_at

    def test_nothing_to_claim(self, store: JobStore) -> None:
        assert store.claim("nobody") is None
        store.create(new_job(), max_queued=10)
        store.cancel("a")
        assert store.claim("a") is None

    def test_whole_life(self, patient: JobStore, redis: Redis) -> None:
        claim = claimed(patient)
        assert patient.move(claim, "running")
        assert patient.renew(claim) == (S.RUNNING, False)
        assert patient.move(claim, "evaluating")
        patient.judge(claim, EVALUATION)
        assert patient.move(claim, "succeeded", adapter_version=3)
        job = patient.get("a")
        assert (job.status, job.adapter_version) == (S.SUCCEEDED, 3)
        assert job.evaluation == EVALUATION
        assert job.finished_at
        assert job.started_at
        assert job.created_at <= job.started_at <= job.finished_at
        assert statuses_told(redis) == [
            "queued",
            "preparing",
            "running",
            "evaluating",
            "succeeded",
        ]
        assert redis.xrevrange(events_key("a"), count=1)[0][1]["type"] == "done"
        assert not redis.exists("dragoman:job:a:lease")

    def test_judgement_is_announced(self, patient: JobStore, redis: Redis) -> None:
        claim = claimed(patient)
        patient.judge(claim, EVALUATION)
        event = redis.xrevrange(events_key("a"), count=1)[0][1]
        assert event["type"] == "evaluation"
        assert Evaluation.model_validate_json(event["data"]) == EVALUATION

    def test_resolved_config(self, patient: JobStore) -> None:
        claim = claimed(patient)
        assert patient.get("a").resolved is None
        resolved = claim.job.config.settled(num_rows=100, hidden_size=64)
        patient.resolve(claim, resolved, ["a warning"])
        job = patient.get("a")
        assert (job.config, job.resolved, job.warnings) == (JobConfig(), resolved, ["a warning"])

    def test_failure_keeps_its_reason(self, patient: JobStore) -> None:
        claim = claimed(patient)
        error = JobError(code="dataset_too_long", message="each row")
        assert patient.move(claim, "failed", error=error)
        assert patient.get("a").error == error

    def test_report(self, patient: JobStore, redis: Redis) -> None:
        claim = claimed(patient)
        progress = Progress(step=2, total_steps=4, percent=50)
        metric = Metric(train=TrainPoint(step=2, epoch=0.5, loss=1.5))
        patient.report(claim, progress, metric, warnings=["2 rows were left out"])
        job = patient.get("a")
        assert (job.progress, job.warnings) == (progress, ["2 rows were left out"])
        event = redis.xrevrange(events_key("a"), count=1)[0][1]
        assert event["type"] == "metrics"
        assert json.loads(event["data"]) == {
            "progress": progress.model_dump(),
            "train": {"step": 2, "epoch": 0.5, "loss": 1.5},
        }


# How a claimed job comes into each status.
REACH: dict[JobStatus, Callable[[JobStore, Claim], object]] = {
    S.PREPARING: lambda store, claim: None,
    S.RUNNING: lambda store, claim: store.move(claim, "running"),
    S.PAUSING: lambda store, claim: (
        store.move(claim, "running"),
        store.pause(claim.job.id),
    ),
    S.EVALUATING: lambda store, claim: (
        store.move(claim, "running"),
        store.move(claim, "evaluating"),
    ),
    S.CANCELLING: lambda store, claim: store.cancel(claim.job.id),
    S.SUCCEEDED: lambda store, claim: (
        store.move(claim, "running"),
        store.move(claim, "succeeded"),
    ),
    S.FAILED: lambda store, claim: store.move(claim, "failed"),
    S.CANCELLED: lambda store, claim: (
        store.cancel(claim.job.id),
        store.move(claim, "cancelled"),
    ),
}
MAY_MOVE: dict[JobStatus, set[str]] = {
    S.PREPARING: {"running", "failed"},
    S.RUNNING: {"evaluating", "succeeded", "failed"},
    S.PAUSING: {"succeeded", "failed"},
    S.EVALUATING: {"succeeded", "failed"},
    S.CANCELLING: {"succeeded", "failed", "cancelled"},
    S.SUCCEEDED: set(),
    S.FAILED: set(),
    S.CANCELLED: set(),
}
TARGETS = ("running", "evaluating", "succeeded", "failed", "cancelled")


class TestTransitions:
    @pytest.mark.parametrize("status", REACH)
    @pytest.mark.parametrize("target", TARGETS)
    def test_move(self, patient: JobStore, redis: Redis, status: JobStatus, target: str) -> None:
        claim = claimed(patient)
        REACH[status](patient, claim)
        assert patient.get("a").status == status
        before, told = redis.hgetall("dragoman:job:a"), statuses_told(redis)

        moved = patient.move(claim, target, adapter_version=9)  # type: ignore[arg-type]
        if target in MAY_MOVE[status]:
            assert moved
            assert patient.get("a").status == target
            assert statuses_told(redis) == [*told, target]
        else:
            # A repetition is no error, and no second event: the first answer may have been lost on its way.
            assert moved == (status == target)
            assert redis.hgetall("dragoman:job:a") == before
            assert statuses_told(redis) == told

    @pytest.mark.parametrize("status", REACH)
    def test_cancel(self, patient: JobStore, status: JobStatus) -> None:
        claim = claimed(patient)
        REACH[status](patient, claim)
        if status in ENDED:
            with pytest.raises(ConflictError, match=f"job a is {status}; ") as caught:
                patient.cancel("a")
            assert caught.value.code == "job_ended"
            assert patient.get("a").status == status
        else:
            assert patient.cancel("a").status == S.CANCELLING

    def test_cancel_of_a_waiting_job_is_immediate(self, store: JobStore, redis: Redis) -> None:
        store.create(new_job(), max_queued=1)
        assert store.cancel("a").status == S.CANCELLED
        assert statuses_told(redis) == ["queued", "cancelled"]
        assert store.create(new_job("b"), max_queued=1).id == "b"

    def test_cancel_of_an_unknown_job(self, store: JobStore, redis: Redis) -> None:
        with pytest.raises(NotFoundError):
            store.cancel("nobody")
        assert redis.keys("*") == []


class TestPause:
    @pytest.mark.parametrize("status", REACH)
    def test_pause(self, patient: JobStore, redis: Redis, status: JobStatus) -> None:
        claim = claimed(patient)
        REACH[status](patient, claim)
        told = statuses_told(redis)
        if status in (S.PREPARING, S.RUNNING, S.PAUSING):
            assert patient.pause("a").status == S.PAUSING
        else:
            with pytest.raises(ConflictError, match=f"job a is {status}; ") as caught:
                patient.pause("a")
            assert caught.value.code == "job_not_pausable"
            assert statuses_told(redis) == told
        with pytest.raises(ConflictError) as caught:
            patient.resume("a")
        assert caught.value.code == "job_not_paused"

    def test_a_waiting_job_leaves_the_queue(self, store: JobStore) -> None:
        store.create(new_job(), max_queued=1)
        assert store.pause("a").status == S.PAUSED
        with pytest.raises(ConflictError):
            store.pause("a")
        assert store.claim("a") is None
        assert store.claim_next("cpu") is None
        store.create(new_job("b"), max_queued=1)
        assert store.resume("a").status == S.QUEUED
        assert store.claim_next("cpu").job.id == "a"  # type: ignore[union-attr]

    def test_released_by_its_worker(self, patient: JobStore, redis: Redis) -> None:
        old = claimed(patient)
        patient.move(old, "running")
        patient.report(old, Progress(step=7))
        patient.pause("a")
        patient.release(old)
        job = patient.get("a")
        assert (job.status, job.attempt, job.progress.step) == (S.PAUSED, 0, 7)
        TestLease.assert_fenced(patient, redis, old)
        assert patient.sweep() == []
        created_at = job.created_at
        patient.resume("a")
        assert patient.sweep() == ["a"], "its message is owed at once"
        again = patient.claim_next("cpu")
        assert again
        assert (again.job.attempt, again.job.created_at) == (1, created_at)

    def test_dead_worker(self, store: JobStore) -> None:
        claimed(store)
        store.pause("a")
        time.sleep(1.5 * LEASE_S)
        assert store.sweep() == []
        assert store.get("a").status == S.PAUSED

    def test_unknown_job(self, store: JobStore, redis: Redis) -> None:
        for order in (store.pause, store.resume, store.delete):
            with pytest.raises(NotFoundError):
                order("nobody")
        assert redis.keys("*") == []


class TestCancelAndPublish:
    def test_running(self, patient: JobStore) -> None:
        claim = claimed(patient)
        patient.move(claim, "running")
        patient.cancel("a", publish=True)
        assert patient.renew(claim) == (S.CANCELLING, True)
        # Its worker has to go: the next one publishes.
        patient.release(claim)
        assert patient.get("a").status == S.QUEUED
        claim = patient.claim_next("cpu")  # type: ignore[assignment]
        assert claim.job.status == S.CANCELLING
        assert patient.renew(claim) == (S.CANCELLING, True)
        assert patient.move(claim, "cancelled", adapter_version=3)
        assert patient.get("a").adapter_version == 3

    def test_who_wants_nothing_published_has_the_last_word(self, patient: JobStore) -> None:
        claim = claimed(patient)
        patient.cancel("a", publish=True)
        patient.cancel("a")
        patient.cancel("a", publish=True)
        assert patient.renew(claim) == (S.CANCELLING, False)

    def test_waiting_jobs(self, patient: JobStore) -> None:
        patient.create(new_job(), max_queued=2)
        assert patient.cancel("a", publish=True).status == S.CANCELLED, "it has learnt nothing"
        claim = claimed(patient, "b")
        patient.pause("b")
        patient.release(claim)
        assert patient.cancel("b", publish=True).status == S.QUEUED
        with pytest.raises(ConflictError):
            patient.pause("b")
        assert patient.cancel("b").status == S.CANCELLED

    def test_dead_worker(self, store: JobStore) -> None:
        claimed(store)
        store.cancel("a", publish=True)
        time.sleep(1.5 * LEASE_S)
        assert store.sweep() == ["a"]
        assert store.get("a").status == S.QUEUED


class TestDelete:
    @pytest.mark.parametrize("status", REACH)
    def test_only_ended_jobs(self, patient: JobStore, redis: Redis, status: JobStatus) -> None:
        claim = claimed(patient)
        REACH[status](patient, claim)
        if status in ENDED:
            patient.delete("a")
            redis.delete("dragoman:jobs:durations")
            assert redis.keys("*") == []
        else:
            with pytest.raises(ConflictError) as caught:
                patient.delete("a")
            assert caught.value.code == "job_not_ended"
            assert patient.get("a").status == status

    def test_its_idempotency_key_is_free_again(self, store: JobStore) -> None:
        store.create(new_job("a"), max_queued=1, idempotency_key="k")
        store.cancel("a")
        store.delete("a")
        assert store.create(new_job("b"), max_queued=1, idempotency_key="k").id == "b"


class TestQueue:
    @staticmethod
    def order(store: JobStore, device: str = "cpu") -> list[str]:
        claims = iter(lambda: store.claim_next(device), None)
        return [claim.job.id for claim in claims]  # type: ignore[union-attr]

    @staticmethod
    def add(store: JobStore, name: str, *, device: str = "auto", **update: object) -> None:
        job = new_job(name, age_s=float(update.pop("age_s", 0)))  # type: ignore[arg-type]
        config = JobConfig(device=device)  # type: ignore[arg-type]
        store.create(job.model_copy(update={"config": config} | update), max_queued=10)

    def test_priority_then_age(self, store: JobStore) -> None:
        self.add(store, "young-low", priority=Priority.LOW)
        self.add(store, "old-low", priority=Priority.LOW, age_s=90_000)
        self.add(store, "young", age_s=1)
        self.add(store, "old", age_s=50)
        self.add(store, "high", priority=Priority.HIGH)
        places = store.places()
        expected = ["high", "old", "young", "old-low", "young-low"]
        assert sorted(places, key=lambda i: places[i].position) == expected
        assert self.order(store) == expected
        assert store.places() == {}

    def test_a_job_handed_back_keeps_its_place(self, patient: JobStore) -> None:
        self.add(patient, "old", age_s=50)
        claim = patient.claim_next("cpu")
        assert claim
        self.add(patient, "young")
        patient.release(claim)
        assert self.order(patient) == ["old", "young"]

    def test_devices(self, store: JobStore) -> None:
        self.add(store, "gpu", device="cuda", age_s=9)
        self.add(store, "any", age_s=8)
        self.add(store, "cpu", device="cpu", age_s=7)
        assert self.order(store, "cpu") == ["any", "cpu"]
        assert self.order(store, "cuda") == ["gpu"]

    def test_an_id_without_a_record(self, store: JobStore, redis: Redis) -> None:
        redis.zadd("dragoman:jobs:queue:auto", {"ghost": 0})
        self.add(store, "a")
        assert self.order(store) == ["a"]

    def test_durations_tell_when_to_expect(self, patient: JobStore) -> None:
        claim = claimed(patient)
        self.add(patient, "next")
        assert patient.places()["next"].expected_start is None
        patient.move(claim, "running")
        patient.report(claim, Progress(step=1, eta_seconds=600))
        start = patient.places()["next"].expected_start
        assert start
        assert 590 < (start - datetime.now(UTC)).total_seconds() <= 600
        patient.move(claim, "succeeded")
        assert patient.places()["next"].expected_start <= datetime.now(UTC)  # type: ignore[operator]


class TestLease:
    def test_expired_lease_gives_the_job_away(self, store: JobStore, redis: Redis) -> None:
        old = claimed(store)
        store.move(old, "running")
        store.report(old, Progress(step=7))
        assert store.sweep() == []  # the lease is held
        time.sleep(1.5 * LEASE_S)
        store.sweep()
        job = store.get("a")
        # Its next attempt goes on from a checkpoint: it has begun, and is so far.
        assert (job.status, job.attempt, job.progress.step) == (S.QUEUED, 1, 7)
        assert job.started_at

        new = store.claim("a")
        assert new
        assert new.job.attempt == 2
        self.assert_fenced(store, redis, old)

    @staticmethod
    def assert_fenced(store: JobStore, redis: Redis, old: Claim) -> None:
        """The worker that was given up, and comes back, changes nothing."""
        before = redis.hgetall("dragoman:job:a")
        attempts: list[Callable[[], object]] = [
            lambda: store.renew(old),
            lambda: store.move(old, "running"),
            lambda: store.move(old, "succeeded", adapter_version=1),
            lambda: store.move(old, "failed"),
            lambda: store.report(old, Progress(step=99)),
            lambda: store.resolve(old, JobConfig(), ["too late"]),
            lambda: store.judge(old, EVALUATION),
        ]
        for attempt in attempts:
            with pytest.raises(LeaseLostError):
                attempt()
        store.release(old)
        assert redis.hgetall("dragoman:job:a") == before

    def test_swept_but_not_yet_claimed(self, store: JobStore, redis: Redis) -> None:
        old = claimed(store)
        time.sleep(1.5 * LEASE_S)
        store.sweep()
        self.assert_fenced(store, redis, old)

    def test_late_worker_may_go_on_if_nobody_noticed(self, store: JobStore) -> None:
        claim = claimed(store)
        time.sleep(1.5 * LEASE_S)
        assert store.renew(claim) == (S.PREPARING, False)
        store.sweep()
        assert store.get("a").status == S.PREPARING

    def test_last_attempt(self, store: JobStore) -> None:
        claimed(store)
        time.sleep(1.5 * LEASE_S)
        store.sweep()
        assert store.claim("a")
        time.sleep(1.5 * LEASE_S)
        assert store.sweep() == []
        job = store.get("a")
        assert (job.status, job.attempt) == (S.FAILED, 2)
        assert job.error
        assert job.error.code == "worker_lost"
        assert store.count_open() == {}

    def test_dead_worker_of_a_cancelled_job(self, store: JobStore) -> None:
        claimed(store)
        store.cancel("a")
        time.sleep(1.5 * LEASE_S)
        assert store.sweep() == []
        assert store.get("a").status == S.CANCELLED


class TestRelease:
    def test_attempt_does_not_count(self, patient: JobStore, redis: Redis) -> None:
        old = claimed(patient)
        patient.move(old, "running")
        patient.mark_sent("a")
        patient.release(old)
        job = patient.get("a")
        assert (job.status, job.attempt) == (S.QUEUED, 0)
        assert statuses_told(redis)[-1] == "queued"
        TestLease.assert_fenced(patient, redis, old)
        claim = patient.claim("a")
        assert claim
        assert claim.job.attempt == 1

    def test_release_of_a_cancelled_job(self, patient: JobStore) -> None:
        claim = claimed(patient)
        patient.cancel("a")
        patient.release(claim)
        assert patient.get("a").status == S.CANCELLED

    def test_release_of_an_ended_job(self, patient: JobStore) -> None:
        claim = claimed(patient)
        patient.move(claim, "failed")
        patient.release(claim)
        assert patient.get("a").status == S.FAILED


class TestSweepSends:
    def test_never_sent(self, store: JobStore) -> None:
        store.create(new_job("old", age_s=60), max_queued=10)
        store.create(new_job("older", age_s=90), max_queued=10)
        store.create(new_job("new"), max_queued=10)  # its sender is about to send it
        assert store.sweep() == ["older", "old"]
        store.mark_sent("old")
        store.mark_sent("older")
        assert store.sweep() == []

    def test_message_that_a_dead_worker_took(self, store: JobStore, redis: Redis) -> None:
        store.create(new_job(age_s=60), max_queued=10)
        long_ago = (datetime.now(UTC) - timedelta(seconds=60)).isoformat()
        redis.hset("dragoman:job:a", "sent_at", long_ago)
        redis.lpush(TRAINING_QUEUE, "a message")
        assert store.sweep() == []  # it may be this job's message, waiting for its turn
        redis.delete(TRAINING_QUEUE)
        assert store.sweep() == ["a"]

    def test_taken_from_a_dead_worker(self, store: JobStore) -> None:
        store.create(new_job(age_s=60), max_queued=10)
        store.mark_sent("a")
        assert store.claim("a")
        time.sleep(1.5 * LEASE_S)
        assert store.sweep() == ["a"]

    def test_id_without_a_record(self, store: JobStore, redis: Redis) -> None:
        redis.sadd("dragoman:jobs:open", "ghost")
        assert store.sweep() == []
        assert store.count_open() == {}
        assert redis.keys("*") == []
