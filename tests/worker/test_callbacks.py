"""What a run reports, on a real Redis and a real volume."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from redis import Redis
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from core.errors import InvalidError
from core.job_store import Claim, LeaseLostError, events_key
from core.metrics import METRICS_FILE, read_curve
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


@pytest.fixture
def metric_events(claim: Claim, redis_url: str) -> Callable[[], list[dict[str, Any]]]:
    """The data of the `metrics` events so far, as strict JSON."""

    def read() -> list[dict[str, Any]]:
        with Redis.from_url(redis_url, decode_responses=True) as redis:
            events = redis.xrange(events_key(claim.job.id))
        return [strict_json(e["data"]) for _, e in events if e["type"] == "metrics"]

    return read


def strict_json(text: str) -> Any:
    """Refuses Infinity and NaN, which Python would take."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {text}")

    return json.loads(text, parse_constant=refuse)


def test_total_is_told_before_the_first_step(
    jobs: Jobs, claim: Claim, callback: JobCallback, args: TrainingArguments, attempt: Path
) -> None:
    callback.on_train_begin(args, state_at(0), TrainerControl())
    progress = jobs.store.get(claim.job.id).progress
    assert (progress.step, progress.total_steps, progress.eta_seconds) == (0, 10, None)
    assert progress.restarts == 0
    assert not (attempt / METRICS_FILE).exists()


def test_curve_and_progress(
    jobs: Jobs,
    claim: Claim,
    callback: JobCallback,
    args: TrainingArguments,
    attempt: Path,
    metric_events: Callable[[], list[dict[str, Any]]],
) -> None:
    for step in (1, 2, 3):
        callback.on_step_end(args, state_at(step), TrainerControl(should_log=True))
        logs = {"loss": 3.0 - step, "learning_rate": math.nan, "grad_norm": math.inf}
        callback.on_log(args, state_at(step), TrainerControl(), logs)
    callback.on_log(args, state_at(3), TrainerControl(), {"train_runtime": 1.0})  # the summary

    curve = read_curve(attempt)
    assert [(p.step, p.loss) for p in curve.train] == [(1, 2.0), (2, 1.0), (3, 0.0)]
    assert (curve.train[0].grad_norm, curve.train[0].learning_rate) == (None, None)
    assert [p.step for p in read_curve(attempt, after_step=1).train] == [2, 3]
    progress = jobs.store.get(claim.job.id).progress
    assert (progress.step, progress.percent, progress.epoch) == (3, 30, 0.6)
    assert progress.tokens_per_second == curve.train[-1].tokens_per_second
    assert progress.tokens_per_second
    assert progress.eta_seconds is not None
    # A process with torch in it.
    assert progress.memory_mb == curve.train[-1].memory_mb
    assert 100 < (progress.memory_mb or 0) < 100_000

    assert [e["train"]["loss"] for e in metric_events()] == [2.0, 1.0, 0.0]
    for line in (attempt / METRICS_FILE).read_text().splitlines():
        strict_json(line)


def test_evaluations_are_points_of_their_own(
    callback: JobCallback,
    args: TrainingArguments,
    attempt: Path,
    metric_events: Callable[[], list[dict[str, Any]]],
) -> None:
    for step in (1, 2):
        callback.on_step_end(args, state_at(step), TrainerControl(should_log=True))
        callback.on_log(args, state_at(step), TrainerControl(), {"loss": 1.0})
    logs = {"eval_loss": 0.5, "eval_runtime": 3.0}
    callback.on_log(args, state_at(2), TrainerControl(), logs)
    callback.on_log(args, state_at(2), TrainerControl(), {"eval_loss": math.nan})
    curve = read_curve(attempt)
    assert [p.step for p in curve.train] == [1, 2]
    assert [(p.step, p.epoch, p.loss) for p in curve.eval] == [(2, 0.4, 0.5)]
    assert [set(e) for e in metric_events()] == [
        {"progress", kind} for kind in ("train", "train", "eval")
    ]


class _Model(torch.nn.Module):
    """Learns nothing much, quickly; runs out of memory where a batch has more than `max_rows`."""

    main_input_name = "input_ids"

    def __init__(self, max_rows: int = 64, oom_step: int = 0) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(16, 8)
        self.head = torch.nn.Linear(8, 16)
        self._max_rows = max_rows
        self._calls_until_oom = oom_step

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self._calls_until_oom -= 1
        if len(input_ids) > self._max_rows and self._calls_until_oom < 0:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        logits = self.head(self.embedding(input_ids))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


ROWS = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 20, "labels": [[2, 3, 4, 5]] * 20})


def train(callback: JobCallback, folder: Path, model: _Model, *others: Any, **args: Any) -> Trainer:
    """With transformers' own loop: 20 rows of 4 tokens, 3 epochs."""
    values: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "logging_steps": 1,
        "include_num_input_tokens_seen": "all",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **(values | args)),
        train_dataset=ROWS,
        eval_dataset=ROWS.select(range(4)),
        callbacks=[callback, *others],
    )
    trainer.train()
    return trainer


def test_a_whole_run(
    jobs: Jobs,
    claim: Claim,
    callback: JobCallback,
    attempt: Path,
    tmp_path: Path,
    metric_events: Callable[[], list[dict[str, Any]]],
) -> None:
    train(
        callback,
        tmp_path,
        _Model(),
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="steps",
        save_steps=6,
    )
    curve = read_curve(attempt)
    assert [p.step for p in curve.train] == [4, 8, 12, 15]
    assert [p.step for p in curve.eval] == [5, 10, 15]
    progress = jobs.store.get(claim.job.id).progress
    assert (progress.step, progress.total_steps, progress.percent) == (15, 15, 100)
    assert progress.eta_seconds == 0
    events = metric_events()
    assert events[0]["restart_after_step"] == 0
    assert [e["train"]["step"] for e in events if "train" in e] == [4, 8, 12, 15]
    assert [e["eval"]["step"] for e in events if "eval" in e] == [5, 10, 15]
    # What the time left rests upon.
    plan = callback._eta._plan
    assert (plan.total_steps, plan.steps_per_epoch, plan.tokens_per_epoch) == (15, 5, 80)
    assert (plan.evaluation_steps, plan.checkpoint_steps) == (5, 6)


def test_out_of_memory_begins_the_curve_anew(
    jobs: Jobs,
    claim: Claim,
    callback: JobCallback,
    attempt: Path,
    tmp_path: Path,
    metric_events: Callable[[], list[dict[str, Any]]],
) -> None:
    model = _Model(max_rows=8, oom_step=3)
    train(callback, tmp_path, model, per_device_train_batch_size=10, auto_find_batch_size=True)
    progress = jobs.store.get(claim.job.id).progress
    # Trainer alone takes a tenth off: 10 rows a batch, then 9, then 8, 3 batches in each of 3 epochs.
    assert (progress.step, progress.total_steps, progress.restarts) == (9, 9, 2)
    assert [p.step for p in read_curve(attempt).train] == list(range(1, 10))
    assert [p.step for p in read_curve(attempt, after_step=7).train] == [8, 9]

    # Whoever follows the events, and drops what a restart makes void, holds the same curve.
    events = metric_events()
    assert [e["restart_after_step"] for e in events if "restart_after_step" in e] == [0, 0, 0]
    held: list[int] = []
    for event in events:
        if "restart_after_step" in event:
            held = [step for step in held if step <= event["restart_after_step"]]
        if "train" in event:
            held.append(event["train"]["step"])
    assert sum("train" in e for e in events) == 3 + 9
    assert held == list(range(1, 10))
    totals = [e["progress"]["total_steps"] for e in events if "restart_after_step" in e]
    assert totals == [6, 9, 9]


def test_a_run_that_stops_early_is_complete(
    jobs: Jobs, claim: Claim, callback: JobCallback, attempt: Path, tmp_path: Path
) -> None:
    trainer = train(
        callback,
        tmp_path,
        _Model(),
        EarlyStoppingCallback(1),
        learning_rate=0.0,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=3,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        num_train_epochs=10,
    )
    step = trainer.state.global_step
    assert 3 <= step < 50
    progress = jobs.store.get(claim.job.id).progress
    assert (progress.step, progress.total_steps, progress.percent) == (step, step, 100)
    assert progress.eta_seconds == 0
    curve = read_curve(attempt)
    assert curve.train[-1].step == step, "the last point, though logging_steps does not divide it"
    assert curve.eval[-1].step == step


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


@pytest.mark.parametrize(
    "hook", ["on_step_begin", "on_substep_end", "on_step_end", "on_prediction_step"]
)
def test_check_at_every_step(
    jobs: Jobs, claim: Claim, attempt: Path, args: TrainingArguments, hook: str
) -> None:
    def stop() -> None:
        raise KeyError

    callback = JobCallback(jobs.store, claim, attempt, stop)
    with pytest.raises(KeyError):
        getattr(callback, hook)(args, state_at(1), TrainerControl())
