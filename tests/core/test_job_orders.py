"""What anyone may order: pause, cancel, delete; and in which order jobs start."""

import time
from datetime import UTC, datetime

import pytest
from redis import Redis

from core.errors import ConflictError, NotFoundError
from core.job_store import JobStore
from core.jobs import ENDED, JobStatus, Priority, Progress
from core.training_config import JobConfig
from tests.core.job_states import LEASE_S, REACH, S, assert_fenced, claimed, new_job, statuses_told


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
        assert_fenced(patient, redis, old)
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
