"""Which checkpoint is meant and, where there is none, why and when there will be one."""

from typing import Any

import pytest

from app.checkpoints import CheckpointFinder, list_checkpoints
from core.errors import ConflictError, NotFoundError, ServiceError
from core.job_store import Claim
from core.jobs import Progress
from core.settings import Settings
from core.volume import Volume
from tests.core.test_checkpoints import JOB, Write
from tests.core.test_checkpoints import write as write  # a fixture
from tests.worker.conftest import Jobs


@pytest.fixture
def jobs(settings: Settings) -> Jobs:
    return Jobs(settings)


@pytest.fixture
def finder(jobs: Jobs) -> CheckpointFinder:
    return CheckpointFinder(jobs.volume, jobs.store, 5)


def refusal(finder: CheckpointFinder, ref: str) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        finder.find(ref)
    return caught.value


def test_the_newest_or_the_one_of_a_step(
    finder: CheckpointFinder, volume: Volume, write: Write
) -> None:
    for step in (8, 16):
        write(f"step-{step}", step)
    assert finder.find(f"job:{JOB}").ref == f"job:{JOB}@16"
    assert finder.find(f"job:{JOB}@8").version == 8
    shown = list_checkpoints(volume, JOB)
    assert [(c.step, c.adapter) for c in shown] == [(16, f"job:{JOB}@16"), (8, f"job:{JOB}@8")]


@pytest.mark.parametrize("step", ["4", "08", "", "x", "8@8"])
def test_a_step_that_is_not_there(finder: CheckpointFinder, write: Write, step: str) -> None:
    write("step-8", 8)
    write("step-16", 16)
    error = refusal(finder, f"job:{JOB}@{step}")
    assert isinstance(error, NotFoundError)
    assert error.code == "checkpoint_not_found"
    assert error.extra == {"checkpoints": [16, 8]}
    assert f"job {JOB} has no checkpoint of step {step!r}; there are steps 16, 8" in error.message


@pytest.mark.parametrize("name", ["none", "", "../x", "a:b", "x" * 100])
def test_no_such_job(finder: CheckpointFinder, name: str) -> None:
    error = refusal(finder, f"job:{name}")
    assert (error.status_code, error.code) == (404, "job_not_found")


@pytest.mark.parametrize(
    ("training", "step", "expected"),
    [
        ({}, 7, "after every 5 minutes of training"),
        ({"save_steps": 5}, 7, "after step 10"),
        ({"save_steps": 50}, 7, "after step 20"),  # its last: what it has learnt is kept then
        ({"early_stopping_patience": 2, "eval_steps": 4, "save_steps": 5}, 7, "after step 8"),
        ({"early_stopping_patience": 2}, 7, "first evaluation"),
    ],
)
def test_none_yet(
    finder: CheckpointFinder, jobs: Jobs, training: dict[str, Any], step: int, expected: str
) -> None:
    job = jobs.create({"training": training})
    error = refusal(finder, f"job:{job.id}")
    assert isinstance(error, ConflictError)
    assert error.code == "checkpoint_not_ready"
    assert "it is queued, before its first step" in error.message
    running(jobs, job.id, step)
    error = refusal(finder, f"job:{job.id}@3")
    assert error.code == "checkpoint_not_ready"
    assert f"it is running, at step {step} of 20. " in error.message
    assert expected in error.message


def test_a_job_that_has_ended(finder: CheckpointFinder, jobs: Jobs) -> None:
    lost = jobs.create()
    jobs.store.cancel(lost.id)
    error = refusal(finder, f"job:{lost.id}")
    assert (error.status_code, error.code) == (409, "job_ended")
    assert "cancelled" in error.message
    assert "no version" in error.message
    won = jobs.create(adapter="yoda")
    claim = running(jobs, won.id, 20)
    assert jobs.store.move(claim, "succeeded", adapter_version=3)
    assert "it published yoda@3: ask for that" in refusal(finder, f"job:{won.id}").message


def running(jobs: Jobs, job_id: str, step: int) -> Claim:
    claim = jobs.store.claim(job_id)
    assert claim
    assert jobs.store.move(claim, "running")
    jobs.store.report(claim, Progress(step=step, total_steps=20), None)
    return claim
