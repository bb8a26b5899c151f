"""Workers that are killed at any moment, and workers that stand still while others take their job."""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from core.jobs import CLAIMED, ENDED, JobStatus
from tests.e2e.chaos.conftest import config, faults
from tests.e2e.chaos.tally import Tally, count_versions, losses
from tests.worker.conftest import Jobs, WorkerProcess

pytestmark = pytest.mark.e2e
StartWorker = Callable[..., WorkerProcess]


def test_killed_at_random_moments(
    jobs: Jobs, start_worker: StartWorker, chance: random.Random
) -> None:
    """The curve and the weights are those of a run that nobody disturbed."""
    num_kills = faults(3, 20)
    asked = config(faults(40, 1000), logging_steps=1)
    worker = start_worker()
    whole = jobs.wait(jobs.create(asked, adapter="whole", is_sent=True).id, timeout_s=600)
    assert whole.status == JobStatus.SUCCEEDED, worker.log
    assert whole.started_at
    assert whole.finished_at
    whole_s = (whole.finished_at - whole.started_at).total_seconds()

    job_id = jobs.create(asked, adapter="killed", is_sent=True).id
    killed = 0
    while killed < num_kills:
        # Once an attempt has begun, at any moment of it; of the first, before its end even on a fast machine.
        job = jobs.wait(job_id, *CLAIMED, *ENDED, attempt=killed + 1, timeout_s=300)
        if job.status in ENDED:
            break
        longest_s = faults(1, 4)
        time.sleep(chance.uniform(0.0, longest_s if killed else min(longest_s, whole_s / 2)))
        if chance.random() < 0.25:
            os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            worker = start_worker()
        else:
            for pid in worker.children():
                os.kill(pid, signal.SIGKILL)
        if jobs.store.get(job_id).status in ENDED:  # it was killed too late
            break
        killed += 1
    job = jobs.wait(job_id, timeout_s=600)
    assert losses(jobs.volume, job) == losses(jobs.volume, whole)
    weights = [
        (jobs.registry.resolve(name).path / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    Tally(jobs, [whole.id, job_id]).check("worker killed", killed)
    assert killed >= faults(1, num_kills), "the job ended too soon"
    jobs.wait_until_swept(job_id)


def test_a_worker_that_stood_still(jobs: Jobs, start_worker: StartWorker) -> None:
    """SIGSTOP past its lease, then SIGCONT: another worker has done the job, and it changes nothing."""
    num_stops = faults(1, 5)
    ids = []
    for _ in range(num_stops):
        still = start_worker()
        job_id = jobs.create(config(80), adapter="still", is_sent=True).id
        ids.append(job_id)
        jobs.wait(job_id, JobStatus.RUNNING, min_step=8, timeout_s=300)
        os.killpg(still.process.pid, signal.SIGSTOP)
        other = start_worker()
        done = jobs.wait(job_id, timeout_s=300)
        assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2), other.log
        os.killpg(still.process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 60
        while "was taken from this worker" not in still.log:
            assert time.monotonic() < deadline, still.log
            time.sleep(0.1)
        assert jobs.store.get(job_id) == done
        assert count_versions(jobs.registry)[job_id] == 1
        still.end()
        other.end()
    Tally(jobs, ids).check("worker stood still", num_stops)
