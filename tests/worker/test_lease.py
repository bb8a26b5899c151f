"""A claimed job's lease against a real Redis: it is kept, it is lost, and it makes the work stop."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from core.job_store import Claim, JobStore, LeaseLostError
from core.jobs import JobStatus
from core.settings import Settings
from embedded.redis_server import EmbeddedRedis
from tests.worker.conftest import ROOT, Jobs
from worker.lease import JobCancelledError, LeaseKeeper, StopRequest, WorkerStoppingError
from worker.tasks import connect_store

LEASE_S = 600.0  # no test outlives it; a keeper renews it each second
SHORTENED_MS = 20_000


@pytest.fixture
def worker_settings(worker_settings: Settings) -> Settings:
    return worker_settings.model_copy(update={"job_lease_s": LEASE_S})


@pytest.fixture
def store(worker_settings: Settings) -> JobStore:
    return connect_store(worker_settings)


@pytest.fixture
def claim(jobs: Jobs, store: JobStore) -> Claim:
    claim = store.claim(jobs.create().id)
    assert claim
    return claim


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


class Lease:
    """The lease of `claim` as Redis has it."""

    def __init__(self, store: JobStore, claim: Claim) -> None:
        self._redis = store._redis
        self._key = f"dragoman:job:{claim.job.id}:lease"

    def shorten(self, ms: int = SHORTENED_MS) -> None:
        assert self._redis.pexpire(self._key, ms)

    def wait_until_renewed(self) -> None:
        """Shortens it, and waits for a keeper to prolong it."""
        self.shorten()
        wait_until(lambda: self._redis.pttl(self._key) > SHORTENED_MS)

    def wait_until_expired(self) -> None:
        wait_until(lambda: not self._redis.exists(self._key))


@pytest.fixture
def kept(store: JobStore, claim: Claim) -> Lease:
    return Lease(store, claim)


@pytest.fixture
def lease(store: JobStore, claim: Claim, stop: StopRequest) -> Iterator[LeaseKeeper]:
    with LeaseKeeper(store, claim, stop, lease_s=LEASE_S, grace_s=60) as lease:
        yield lease


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for(error: type[Exception], check: Callable[[], None]) -> None:
    def is_raised() -> bool:
        try:
            check()
        except error:
            return True
        return False

    wait_until(is_raised)


def test_lease_outlives_itself(
    store: JobStore, claim: Claim, lease: LeaseKeeper, kept: Lease
) -> None:
    for _ in range(2):
        kept.wait_until_renewed()
    assert store.sweep() == []
    assert store.get(claim.job.id).status == JobStatus.PREPARING
    lease.check()
    lease.renew_now()


def test_lease_ends_with_its_keeper(
    store: JobStore, claim: Claim, stop: StopRequest, kept: Lease
) -> None:
    with LeaseKeeper(store, claim, stop, lease_s=LEASE_S, grace_s=60):
        kept.wait_until_renewed()
    kept.shorten(1500)  # time enough for a keeper to renew it
    kept.wait_until_expired()
    store.sweep()
    assert store.get(claim.job.id).status == JobStatus.QUEUED


def test_cancel_is_noticed(store: JobStore, claim: Claim, lease: LeaseKeeper) -> None:
    store.cancel(claim.job.id)
    wait_for(JobCancelledError, lease.check)
    with pytest.raises(JobCancelledError):
        lease.renew_now()


def test_stop_request_is_noticed_at_once(lease: LeaseKeeper, stop: StopRequest) -> None:
    assert stop.age_s is None
    stop.make()
    with pytest.raises(WorkerStoppingError):
        lease.check()
    assert stop.age_s is not None


def test_lost_lease_is_noticed(store: JobStore, claim: Claim, lease: LeaseKeeper) -> None:
    store.release(claim)
    wait_for(LeaseLostError, lease.check)
    with pytest.raises(LeaseLostError):
        lease.renew_now()


def test_redis_may_be_away_for_a_while(
    worker_settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path_factory.mktemp("redis")
    with EmbeddedRedis(folder) as redis:
        settings = worker_settings.model_copy(update={"redis_url": redis.url, "job_lease_s": 30})
        jobs = Jobs(settings)
        claim = jobs.store.claim(jobs.create().id)
        assert claim
        assert redis.process
        with LeaseKeeper(jobs.store, claim, StopRequest(), lease_s=1, grace_s=60) as lease:
            redis.process.terminate()
            redis.process.wait()
            wait_until(lambda: "cannot renew the lease" in caplog.text)
            lease.check()


HANGING_WORK = """
import sys, time
from core.settings import Settings
from worker.lease import LeaseKeeper, StopRequest
from worker.tasks import connect_store

settings = Settings(redis_url=sys.argv[1])
store, stop = connect_store(settings), StopRequest()
claim = store.claim(sys.argv[2])
with LeaseKeeper(store, claim, stop, lease_s=1, grace_s=0.5):
    {order}
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("order", "status", "attempt"),
    [
        ("stop.make()", JobStatus.QUEUED, 0),
        ("store.cancel(claim.job.id)", JobStatus.CANCELLED, 1),
        # As a sweep does: the job is another worker's by now, and stays as it is.
        (
            "store._redis.hincrby('dragoman:job:' + claim.job.id, 'fence', 1)",
            JobStatus.PREPARING,
            1,
        ),
    ],
)
def test_work_that_does_not_stop_is_ended(
    jobs: Jobs, store: JobStore, redis_url: str, order: str, status: JobStatus, attempt: int
) -> None:
    job = jobs.create()
    work = HANGING_WORK.replace("{order}", order)
    process = subprocess.run(
        [sys.executable, "-c", work, redis_url, job.id], cwd=ROOT, timeout=300, check=False
    )
    assert process.returncode == 1
    job = store.get(job.id)
    assert (job.status, job.attempt) == (status, attempt)


def test_a_process_that_does_more_is_not_ended(
    store: JobStore, claim: Claim, stop: StopRequest, kept: Lease
) -> None:
    def work() -> None:
        with LeaseKeeper(store, claim, stop, lease_s=LEASE_S, grace_s=0) as lease:
            store.cancel(claim.job.id)
            wait_for(JobCancelledError, lease.check)
            for _ in range(2):  # it lives on, and has had no grace twice by then
                kept.wait_until_renewed()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert store.get(claim.job.id).status == JobStatus.CANCELLING
