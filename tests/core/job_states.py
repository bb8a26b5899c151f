"""Jobs in each status, for the tests of their store."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from core.job_store import Claim, JobStore, LeaseLostError, events_key
from core.jobs import Evaluation, Job, JobStatus, Progress, Sample, Scores
from core.training_config import JobConfig

LEASE_S = 600.0  # no test outlives it, on any machine; see expire_lease
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


def expire_lease(redis: Redis, job_id: str = "a") -> None:
    """As if its worker had been silent for LEASE_S seconds by now; it is Redis that forgets the lease."""
    lease = f"dragoman:job:{job_id}:lease"
    assert 0 < redis.pttl(lease) <= 1000 * LEASE_S
    redis.pexpire(lease, 1)
    while redis.exists(lease):
        time.sleep(0.001)


def statuses_told(redis: Redis, job_id: str = "a") -> list[str]:
    """All that a client of GET /jobs/{id}/events was told."""
    entries = redis.xrange(events_key(job_id))
    return [json.loads(e["data"])["status"] for _, e in entries if e["type"] == "status"]


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
