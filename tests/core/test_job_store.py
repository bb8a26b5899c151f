"""Job records on a real Redis: what is written is read, and who may move a job where."""

import json
import threading

import pytest
from redis import Redis

from core.errors import ConflictError, NotFoundError, UnavailableError
from core.job_store import Claim, JobStore, events_key
from core.jobs import ENDED, Evaluation, JobError, JobStatus, Progress, TrainPoint
from core.metrics import Metric
from core.training_config import JobConfig
from tests.core.job_states import EVALUATION, REACH, S, claimed, new_job, statuses_told


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

    def test_deleted_while_it_was_listed(self, store: JobStore, redis: Redis) -> None:
        """Its id was read just before."""
        store, ghost = store, {"ghost": 1e10}
        store.create(new_job("a"), max_queued=10)
        redis.zadd("dragoman:jobs", ghost)
        redis.sadd("dragoman:jobs:open", "ghost")
        assert [j.id for j in store.find()] == ["a"]
        assert store.uses_dataset("dataset-of-a")
        assert not store.uses_dataset("dataset-of-b")
        assert set(store.places()) == {"a"}
        assert store.count_open() == {"queued": 1}

    def test_dataset_is_in_use_until_the_job_ends(self, store: JobStore) -> None:
        store.create(new_job("a"), max_queued=10)
        assert store.uses_dataset("dataset-of-a")
        assert not store.uses_dataset("dataset-of-b")
        store.cancel("a")
        assert not store.uses_dataset("dataset-of-a")


class TestClaim:
    def test_one_claimant(self, store: JobStore) -> None:
        store.create(new_job(), max_queued=10)
        claims: list[Claim | None] = []
        threads = [
            threading.Thread(target=lambda: claims.append(store.claim("a"))) for _ in range(8)
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

    def test_whole_life(self, store: JobStore, redis: Redis) -> None:
        claim = claimed(store)
        assert store.move(claim, "running")
        assert store.renew(claim) == (S.RUNNING, False)
        assert store.move(claim, "evaluating")
        store.judge(claim, EVALUATION)
        assert store.move(claim, "succeeded", adapter_version=3)
        job = store.get("a")
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

    def test_judgement_is_announced(self, store: JobStore, redis: Redis) -> None:
        claim = claimed(store)
        store.judge(claim, EVALUATION)
        event = redis.xrevrange(events_key("a"), count=1)[0][1]
        assert event["type"] == "evaluation"
        assert Evaluation.model_validate_json(event["data"]) == EVALUATION

    def test_resolved_config(self, store: JobStore) -> None:
        claim = claimed(store)
        assert store.get("a").resolved is None
        resolved = claim.job.config.settled(num_rows=100, hidden_size=64)
        store.resolve(claim, resolved, ["a warning"])
        job = store.get("a")
        assert (job.config, job.resolved, job.warnings) == (JobConfig(), resolved, ["a warning"])

    def test_failure_keeps_its_reason(self, store: JobStore) -> None:
        claim = claimed(store)
        error = JobError(code="dataset_too_long", message="each row")
        assert store.move(claim, "failed", error=error)
        assert store.get("a").error == error

    def test_report(self, store: JobStore, redis: Redis) -> None:
        claim = claimed(store)
        progress = Progress(step=2, total_steps=4, percent=50)
        metric = Metric(train=TrainPoint(step=2, epoch=0.5, loss=1.5))
        store.report(claim, progress, metric)
        assert store.get("a").progress == progress
        event = redis.xrevrange(events_key("a"), count=1)[0][1]
        assert event["type"] == "metrics"
        assert json.loads(event["data"]) == {
            "progress": progress.model_dump(),
            "train": {"step": 2, "epoch": 0.5, "loss": 1.5},
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
    def test_move(self, store: JobStore, redis: Redis, status: JobStatus, target: str) -> None:
        claim = claimed(store)
        REACH[status](store, claim)
        assert store.get("a").status == status
        before, told = redis.hgetall("dragoman:job:a"), statuses_told(redis)

        moved = store.move(claim, target, adapter_version=9)  # type: ignore[arg-type]
        if target in MAY_MOVE[status]:
            assert moved
            assert store.get("a").status == target
            assert statuses_told(redis) == [*told, target]
        else:
            # A repetition is no error, and no second event: the first answer may have been lost on its way.
            assert moved == (status == target)
            assert redis.hgetall("dragoman:job:a") == before
            assert statuses_told(redis) == told

    @pytest.mark.parametrize("status", REACH)
    def test_cancel(self, store: JobStore, status: JobStatus) -> None:
        claim = claimed(store)
        REACH[status](store, claim)
        if status in ENDED:
            with pytest.raises(ConflictError, match=f"job a is {status}; ") as caught:
                store.cancel("a")
            assert caught.value.code == "job_ended"
            assert store.get("a").status == status
        else:
            assert store.cancel("a").status == S.CANCELLING

    def test_cancel_of_a_waiting_job_is_immediate(self, store: JobStore, redis: Redis) -> None:
        store.create(new_job(), max_queued=1)
        assert store.cancel("a").status == S.CANCELLED
        assert statuses_told(redis) == ["queued", "cancelled"]
        assert store.create(new_job("b"), max_queued=1).id == "b"

    def test_cancel_of_an_unknown_job(self, store: JobStore, redis: Redis) -> None:
        with pytest.raises(NotFoundError):
            store.cancel("nobody")
        assert redis.keys("*") == []
