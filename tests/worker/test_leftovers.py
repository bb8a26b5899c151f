"""What dead attempts leave is removed, and what a job may still need is not."""

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
