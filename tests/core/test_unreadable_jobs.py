"""A record that is damaged, or of another release: it is passed over and named, and harms no job beside it."""

import json
import logging

import pytest
from redis import Redis

from core.errors import NotFoundError
from core.job_record import UnreadableJobError
from core.job_store import JobStore
from tests.core.job_states import S, claimed, expire_lease, new_job

FOREIGN = json.dumps(
    {"id": "a", "adapter": "x", "dataset_id": "dataset-of-a", "config": {"lora": {"r": "many"}}}
)
UNREADABLE = [b"\xff", "", "{", "{}", "[]", "null", "7", '"a"', '{"dataset_id": 7}', FOREIGN]


def spoil(redis: Redis, record: str | bytes, job_id: str = "a") -> None:
    redis.hset(f"dragoman:job:{job_id}", "record", record)


@pytest.fixture
def both(store: JobStore) -> JobStore:
    """Jobs a, which comes first, and b."""
    for job_id, age_s in (("a", 90), ("b", 60)):
        store.create(new_job(job_id, age_s=age_s), max_queued=10)
    return store


@pytest.mark.parametrize("record", UNREADABLE)
def test_the_others_are_found(
    both: JobStore, redis: Redis, record: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(redis, record)
    with caplog.at_level(logging.WARNING):
        assert [job.id for job in both.find()] == ["b"]
    assert "job a is queued, and its record cannot be read" in caplog.text
    assert both.count_open() == {"queued": 2}
    claim = both.claim("b")
    assert claim
    assert both.places()["a"].position == 1
    with pytest.raises(UnreadableJobError, match="job a is queued") as caught:
        both.get("a")
    assert (caught.value.status_code, caught.value.code) == (409, "job_unreadable")


@pytest.mark.parametrize("field", ["progress", "warnings", "status", "created_at"])
def test_any_field_may_be_at_fault(both: JobStore, redis: Redis, field: str) -> None:
    redis.hset("dragoman:job:a", field, "{")
    assert [job.id for job in both.find()] == ["b"]
    with pytest.raises(UnreadableJobError):
        both.get("a")


@pytest.mark.parametrize("record", UNREADABLE)
def test_its_dataset_is_in_use(
    both: JobStore, redis: Redis, record: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(redis, record)
    with caplog.at_level(logging.WARNING):
        assert both.uses_dataset("dataset-of-a")
        # Where the record still names its dataset, no other is kept for it.
        assert both.uses_dataset("another") == (record != FOREIGN)
    assert ("job a names no dataset" in caplog.text) == (record != FOREIGN)
    both.cancel("b")
    with pytest.raises(UnreadableJobError, match="job a is cancelled"):
        both.cancel("a")
    assert not both.uses_dataset("dataset-of-a")


@pytest.mark.parametrize("record", UNREADABLE)
def test_it_fails_where_it_would_stand_before_others_for_ever(
    both: JobStore, redis: Redis, record: str | bytes
) -> None:
    spoil(redis, record)
    claim = both.claim_next("cpu")
    assert claim
    assert claim.job.id == "b"
    assert both.status("a") == S.FAILED
    error = json.loads(redis.hget("dragoman:job:a", "error") or "")
    assert error["code"] == "job_unreadable"
    assert "job a is preparing, and its record cannot be read" in error["message"]
    assert not redis.exists("dragoman:job:a:lease")
    assert both.claim_next("cpu") is None
    both.delete("a")
    with pytest.raises(NotFoundError):
        both.status("a")


def test_the_sweep_looks_after_the_others(store: JobStore, redis: Redis) -> None:
    for job_id in "ab":
        claimed(store, job_id)
        expire_lease(redis, job_id)
    redis.hset("dragoman:job:a", mapping={"record": "{", "queue_score": "high", "sent_at": "noon"})
    redis.hset("dragoman:job:a", "status", S.QUEUED)
    assert store.sweep() == ["b"]
