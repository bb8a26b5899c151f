"""What a run reports, on a real Redis and a real volume."""

import json
from pathlib import Path

import pytest
from redis import Redis
from transformers import TrainerControl, TrainerState, TrainingArguments

from core.errors import InvalidError
from core.job_store import Claim, LeaseLostError, events_key
from core.metrics import read_curve
from tests.worker.conftest import Jobs
from worker.callbacks import JobCallback


@pytest.fixture
def claim(jobs: Jobs) -> Claim:
    claim = jobs.store.claim(jobs.create().id)
    assert claim
    return claim


@pytest.fixture
def attempt(jobs: Jobs, claim: Claim) -> Path:
    folder = jobs.volume.attempt(claim.job.id, 1)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def callback(jobs: Jobs, claim: Claim, attempt: Path) -> JobCallback:
    return JobCallback(jobs.store, claim, attempt, lambda: None)


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def state_at(step: int, total: int = 10) -> TrainerState:
    state = TrainerState(global_step=step, max_steps=total, epoch=step / 5)
    state.num_input_tokens_seen = 100 * step
    return state


def test_total_is_told_before_the_first_step(
    jobs: Jobs, claim: Claim, callback: JobCallback, args: TrainingArguments
) -> None:
    callback.on_train_begin(args, state_at(0), TrainerControl())
    progress = jobs.store.get(claim.job.id).progress
    assert (progress.step, progress.total_steps, progress.eta_seconds) == (0, 10, None)


def test_curve_and_progress(
    jobs: Jobs,
    claim: Claim,
    callback: JobCallback,
    args: TrainingArguments,
    attempt: Path,
    redis_url: str,
) -> None:
    for step in (1, 2, 3):
        callback.on_step_end(args, state_at(step), TrainerControl(should_log=True))
        logs = {"loss": 3.0 - step, "learning_rate": 0.1, "grad_norm": float("inf")}
        callback.on_log(args, state_at(step), TrainerControl(), logs)
    callback.on_log(args, state_at(3), TrainerControl(), {"train_runtime": 1.0})  # the summary

    curve = read_curve(attempt)
    assert [(p.step, p.loss) for p in curve.train] == [(1, 2.0), (2, 1.0), (3, 0.0)]
    assert curve.train[0].grad_norm is None
    assert [p.step for p in read_curve(attempt, after_step=1).train] == [2, 3]
    progress = jobs.store.get(claim.job.id).progress
    assert (progress.step, progress.percent, progress.epoch) == (3, 30, 0.6)
    assert progress.tokens_per_second
    assert progress.eta_seconds is not None

    with Redis.from_url(redis_url, decode_responses=True) as redis:
        events = redis.xrange(events_key(claim.job.id))
    points = [json.loads(e["data"]) for _, e in events if e["type"] == "metrics"]
    assert [p["train"]["loss"] for p in points] == [2.0, 1.0, 0.0]


def test_last_step_is_always_logged(callback: JobCallback, args: TrainingArguments) -> None:
    control = TrainerControl()
    callback.on_step_end(args, state_at(9), control)
    assert not control.should_log
    callback.on_step_end(args, state_at(10), control)
    assert control.should_log


def test_infinite_loss_ends_the_run(
    callback: JobCallback, args: TrainingArguments, attempt: Path
) -> None:
    with pytest.raises(InvalidError) as caught:
        callback.on_log(args, state_at(4), TrainerControl(), {"loss": float("nan")})
    assert caught.value.code == "training_diverged"
    assert read_curve(attempt).train == []


def test_lost_lease_ends_the_run(
    jobs: Jobs, claim: Claim, callback: JobCallback, args: TrainingArguments
) -> None:
    jobs.store.release(claim)
    with pytest.raises(LeaseLostError):
        callback.on_log(args, state_at(1), TrainerControl(), {"loss": 1.0})


@pytest.mark.parametrize("hook", ["on_step_begin", "on_substep_end", "on_step_end"])
def test_check_at_every_step(
    jobs: Jobs, claim: Claim, attempt: Path, args: TrainingArguments, hook: str
) -> None:
    def stop() -> None:
        raise KeyError

    callback = JobCallback(jobs.store, claim, attempt, stop)
    with pytest.raises(KeyError):
        getattr(callback, hook)(args, state_at(1), TrainerControl())
