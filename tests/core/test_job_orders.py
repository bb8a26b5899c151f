"""What anyone may order: pause, cancel, delete; and in which order jobs start."""

from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from core.errors import ConflictError, NotFoundError
from core.job_store import JobStore
from core.jobs import ENDED, JobStatus, Priority, Progress
from core.training_config import JobConfig
from tests.core.job_states import (
    REACH,
    S,
    assert_fenced,
    claimed,
    expire_lease,
    new_job,
    statuses_told,
)


class TestPause:
    @pytest.mark.parametrize("status", REACH)
    def test_pause(self, store: JobStore, redis: Redis, status: JobStatus) -> None:
        claim = claimed(store)
        REACH[status](store, claim)
        told = statuses_told(redis)
        if status in (S.PREPARING, S.RUNNING, S.PAUSING):
            assert store.pause("a").status == S.PAUSING
        else:
            with pytest.raises(ConflictError, match=f"job a is {status}; ") as caught:
                store.pause("a")
            assert caught.value.code == "job_not_pausable"
            assert statuses_told(redis) == told
        with pytest.raises(ConflictError) as caught:
            store.resume("a")
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

    def test_released_by_its_worker(self, store: JobStore, redis: Redis) -> None:
        old = claimed(store)
        store.move(old, "running")
        store.report(old, Progress(step=7))
        store.pause("a")
        store.release(old)
        job = store.get("a")
        assert (job.status, job.attempt, job.progress.step) == (S.PAUSED, 0, 7)
        assert_fenced(store, redis, old)
        assert store.sweep() == []
        created_at = job.created_at
        store.resume("a")
        assert store.sweep() == ["a"], "its message is owed at once"
        again = store.claim_next("cpu")
        assert again
        assert (again.job.attempt, again.job.created_at) == (1, created_at)

    def test_dead_worker(self, store: JobStore, redis: Redis) -> None:
        claimed(store)
        store.pause("a")
        expire_lease(redis)
        assert store.sweep() == []
        assert store.get("a").status == S.PAUSED

    def test_unknown_job(self, store: JobStore, redis: Redis) -> None:
        for order in (store.pause, store.resume, store.delete):
            with pytest.raises(NotFoundError):
                order("nobody")
        assert redis.keys("*") == []


class TestCancelAndPublish:
    def test_running(self, store: JobStore) -> None:
        claim = claimed(store)
        store.move(claim, "running")
        store.cancel("a", publish=True)
        assert store.renew(claim) == (S.CANCELLING, True)
        # Its worker has to go: the next one publishes.
        store.release(claim)
        assert store.get("a").status == S.QUEUED
        claim = store.claim_next("cpu")  # type: ignore[assignment]
        assert claim.job.status == S.CANCELLING
        assert store.renew(claim) == (S.CANCELLING, True)
        assert store.move(claim, "cancelled", adapter_version=3)
        assert store.get("a").adapter_version == 3

    def test_who_wants_nothing_published_has_the_last_word(self, store: JobStore) -> None:
        claim = claimed(store)
        store.cancel("a", publish=True)
        store.cancel("a")
        store.cancel("a", publish=True)
        assert store.renew(claim) == (S.CANCELLING, False)

    def test_waiting_jobs(self, store: JobStore) -> None:
        store.create(new_job(), max_queued=2)
        assert store.cancel("a", publish=True).status == S.CANCELLED, "it has learnt nothing"
        claim = claimed(store, "b")
        store.pause("b")
        store.release(claim)
        assert store.cancel("b", publish=True).status == S.QUEUED
        with pytest.raises(ConflictError):
            store.pause("b")
        assert store.cancel("b").status == S.CANCELLED

    def test_dead_worker(self, store: JobStore, redis: Redis) -> None:
        claimed(store)
        store.cancel("a", publish=True)
        expire_lease(redis)
        assert store.sweep() == ["a"]
        assert store.get("a").status == S.QUEUED


class TestDelete:
    @pytest.mark.parametrize("status", REACH)
    def test_only_ended_jobs(self, store: JobStore, redis: Redis, status: JobStatus) -> None:
        claim = claimed(store)
        REACH[status](store, claim)
        if status in ENDED:
            store.delete("a")
            redis.delete("dragoman:jobs:durations")
            assert redis.keys("*") == []
        else:
            with pytest.raises(ConflictError) as caught:
                store.delete("a")
            assert caught.value.code == "job_not_ended"
            assert store.get("a").status == status

    def test_its_idempotency_key_is_free_again(self, store: JobStore) -> None:
        assert store.find_by_key("k") is None
        made = store.create(new_job("a"), max_queued=1, idempotency_key="k")
        assert store.find_by_key("k") == made
        assert store.find_by_key("") is None
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

    def test_a_job_handed_back_keeps_its_place(self, store: JobStore) -> None:
        self.add(store, "old", age_s=50)
        claim = store.claim_next("cpu")
        assert claim
        self.add(store, "young")
        store.release(claim)
        assert self.order(store) == ["old", "young"]

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

    def test_durations_tell_when_to_expect(self, store: JobStore) -> None:
        claim = claimed(store)
        self.add(store, "next")
        assert store.places()["next"].expected_start is None
        store.move(claim, "running")
        store.report(claim, Progress(step=1, eta_seconds=600))
        before = datetime.now(UTC)
        start = store.places()["next"].expected_start
        assert start
        assert before <= start - timedelta(seconds=600) <= datetime.now(UTC)
        store.move(claim, "succeeded")
        assert store.places()["next"].expected_start <= datetime.now(UTC)  # type: ignore[operator]
