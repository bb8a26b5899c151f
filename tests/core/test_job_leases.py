"""What becomes of a job when a worker or a message is lost."""

from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from core.errors import NotFoundError
from core.job_store import JobStore
from core.jobs import Progress
from core.queue import TRAINING_QUEUE
from tests.core.job_states import S, assert_fenced, claimed, expire_lease, new_job, statuses_told


class TestLease:
    def test_expired_lease_gives_the_job_away(self, store: JobStore, redis: Redis) -> None:
        old = claimed(store)
        store.move(old, "running")
        store.report(old, Progress(step=7))
        assert store.sweep() == []  # the lease is held
        expire_lease(redis)
        store.sweep()
        job = store.get("a")
        # Its next attempt goes on from a checkpoint: it has begun, and is so far.
        assert (job.status, job.attempt, job.progress.step) == (S.QUEUED, 1, 7)
        assert job.started_at

        new = store.claim("a")
        assert new
        assert new.job.attempt == 2
        assert_fenced(store, redis, old)

    def test_swept_but_not_yet_claimed(self, store: JobStore, redis: Redis) -> None:
        old = claimed(store)
        expire_lease(redis)
        store.sweep()
        assert_fenced(store, redis, old)

    def test_late_worker_may_go_on_if_nobody_noticed(self, store: JobStore, redis: Redis) -> None:
        claim = claimed(store)
        expire_lease(redis)
        assert store.renew(claim) == (S.PREPARING, False)
        store.sweep()
        assert store.get("a").status == S.PREPARING

    def test_last_attempt(self, store: JobStore, redis: Redis) -> None:
        claimed(store)
        expire_lease(redis)
        store.sweep()
        assert store.claim("a")
        expire_lease(redis)
        assert store.sweep() == []
        job = store.get("a")
        assert (job.status, job.attempt) == (S.FAILED, 2)
        assert job.error
        assert job.error.code == "worker_lost"
        assert store.count_open() == {}

    def test_dead_worker_of_a_cancelled_job(self, store: JobStore, redis: Redis) -> None:
        claimed(store)
        store.cancel("a")
        expire_lease(redis)
        assert store.sweep() == []
        assert store.get("a").status == S.CANCELLED


class TestRelease:
    def test_attempt_does_not_count(self, store: JobStore, redis: Redis) -> None:
        old = claimed(store)
        store.move(old, "running")
        store.mark_sent("a")
        store.release(old)
        job = store.get("a")
        assert (job.status, job.attempt) == (S.QUEUED, 0)
        assert statuses_told(redis)[-1] == "queued"
        assert_fenced(store, redis, old)
        claim = store.claim("a")
        assert claim
        assert claim.job.attempt == 1

    def test_release_of_a_cancelled_job(self, store: JobStore) -> None:
        claim = claimed(store)
        store.cancel("a")
        store.release(claim)
        assert store.get("a").status == S.CANCELLED

    def test_release_of_an_ended_job(self, store: JobStore) -> None:
        claim = claimed(store)
        store.move(claim, "failed")
        store.release(claim)
        assert store.get("a").status == S.FAILED


class TestSweepSends:
    def test_never_sent(self, store: JobStore) -> None:
        store.create(new_job("old", age_s=60), max_queued=10)
        store.create(new_job("older", age_s=90), max_queued=10)
        # Its sender is about to send it; it stays new for a minute, should this machine be slow.
        store.create(new_job("new", age_s=-60), max_queued=10)
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

    def test_taken_from_a_dead_worker(self, store: JobStore, redis: Redis) -> None:
        store.create(new_job(age_s=60), max_queued=10)
        store.mark_sent("a")
        assert store.claim("a")
        expire_lease(redis)
        assert store.sweep() == ["a"]

    def test_unreadable_record(self, store: JobStore, redis: Redis) -> None:
        """Its message goes out like those of the jobs behind it, which wait for none of it."""
        for job_id, age_s in (("a", 90), ("b", 60)):
            store.create(new_job(job_id, age_s=age_s), max_queued=10)
        redis.hset("dragoman:job:a", "record", "{}")
        assert [store.device(job_id) for job_id in store.sweep()] == ["auto", "auto"]
        with pytest.raises(NotFoundError):
            store.device("nobody")

    def test_id_without_a_record(self, store: JobStore, redis: Redis) -> None:
        redis.sadd("dragoman:jobs:open", "ghost")
        assert store.sweep() == []
        assert store.count_open() == {}
        assert redis.keys("*") == []
