"""What dead attempts leave is removed, and what a job may still need is not."""

from redis import Redis

from core.job_store import JobStore
from core.volume import CHECKPOINTS, SCRATCH_PREFIX
from tests.worker.conftest import Jobs
from worker.leftovers import sweep_leftovers


def leave(jobs: Jobs, job_id: str) -> None:
    (jobs.volume.jobs / job_id / CHECKPOINTS / "step-5").mkdir(parents=True)
    (jobs.volume.attempt(job_id, 1) / f"{SCRATCH_PREFIX}x" / "checkpoint-9").mkdir(parents=True)
    (jobs.volume.attempt(job_id, 1) / "log.txt").write_text("a line")


def left(jobs: Jobs, job_id: str) -> list[str]:
    folder = jobs.volume.jobs / job_id
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_sweep(jobs: Jobs) -> None:
    store: JobStore = jobs.store
    ended, waiting = jobs.create().id, jobs.create().id
    for job_id in (ended, waiting, "unknown"):
        leave(jobs, job_id)
    store.cancel(ended)
    before = left(jobs, waiting)
    sweep_leftovers(jobs.volume, store)
    assert left(jobs, ended) == ["attempt-1", "attempt-1/log.txt"]
    assert left(jobs, waiting) == left(jobs, "unknown") == before


def test_an_unreadable_record_keeps_no_other_job_from_being_swept(
    jobs: Jobs, redis_url: str
) -> None:
    ids = [jobs.create().id for _ in range(4)]  # in whatever order they are swept
    for job_id in ids:
        leave(jobs, job_id)
        jobs.store.cancel(job_id)
    with Redis.from_url(redis_url) as redis:
        for job_id in ids[::2]:
            redis.hset(f"dragoman:job:{job_id}", "record", "{")
    sweep_leftovers(jobs.volume, jobs.store)
    for job_id in ids:
        assert left(jobs, job_id) == ["attempt-1", "attempt-1/log.txt"]
