"""What the trainer tells while it trains: the loss curve and the progress; and where it is made to stop."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute
import torch
from datasets import Dataset
from redis import RedisError
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from core.errors import InvalidError
from core.job_store import Claim, JobStore
from core.jobs import EvalPoint, Progress, TrainPoint
from core.metrics import METRICS_FILE, Metric, append_metric
from worker.eta import Eta, Plan

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 1.0


class JobCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the curve to the volume, then announces it; `check` raises if the run should stop.

    A run may begin more than once: after it ran out of memory the trainer starts the loop again with smaller batches.
    `note_batch_size` is told the rows in a batch at each beginning. `ends_early` says whether the run was cancelled, and
    is to end with what it has learnt. `eval_dataset` is only counted, so that the first estimate of the time left knows
    of evaluations.
    """

    def __init__(
        self,
        store: JobStore,
        claim: Claim,
        attempt: Path,
        check: Callable[[], None],
        *,
        eval_dataset: Dataset | None = None,
        ends_early: Callable[[], bool] = lambda: False,
        note_batch_size: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._claim = claim
        self._attempt = attempt
        self._check = check
        self._eval_dataset = eval_dataset
        self._ends_early = ends_early
        self._note_batch_size = note_batch_size
        self._eta = Eta(Plan(total_steps=0))
        self._num_begun = 0
        self._reported_at_s = 0.0
        self.progress = Progress()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader[Any] | None = None,
        **_: Any,
    ) -> None:
        self._num_begun += 1
        self._eta = Eta(_plan(args, state, train_dataloader, self._eval_dataset))
        restart = Metric(restart_after_step=state.global_step)
        if (self._attempt / METRICS_FILE).exists():
            append_metric(self._attempt, restart)
        if self._num_begun > 1:
            logger.warning(
                "out of memory: training begins anew with batches of %d, %d in a step, after step %d",
                args.per_device_train_batch_size,
                args.gradient_accumulation_steps,
                state.global_step,
            )
        self._note_batch_size(args.per_device_train_batch_size)
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)
        # Whoever watches the job may hold points of an earlier beginning, or of an earlier attempt.
        self._report(self._progress(args, state), restart)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._check()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._check()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._check()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now_s = time.monotonic()
        self._eta.add_step(now_s, state.global_step, int(state.num_input_tokens_seen))
        if state.global_step >= state.max_steps:
            control.should_log = True  # the curve's last point, whatever logging_steps divides
        if not control.should_log and now_s - self._reported_at_s > _PROGRESS_INTERVAL_S:
            self._report(self._progress(args, state))
        self._check()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if control.should_training_stop:
            control.should_log = True  # the last point of a run that stopped early

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._eta.add_pause("checkpoint", time.monotonic())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._write_train_point(args, state, logs)
        elif logs and "eval_loss" in logs:
            self._eta.add_pause("evaluation", time.monotonic())
            self._write_eval_point(args, state, logs["eval_loss"])
        # else the summary at the end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A run that stopped early is complete all the same, unless somebody cancelled it."""
        if self._ends_early():
            self._report(self._progress(args, state).model_copy(update={"eta_seconds": 0.0}))
            return
        ended = self._progress(args, state).model_copy(
            update={"total_steps": state.global_step, "percent": 100.0, "eta_seconds": 0.0}
        )
        self._report(ended)

    def _write_train_point(
        self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]
    ) -> None:
        if not math.isfinite(logs["loss"]):
            raise diverged(state.global_step)
        progress = self._progress(args, state)
        point = TrainPoint(
            step=state.global_step,
            epoch=progress.epoch,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=progress.tokens_per_second,
            memory_mb=progress.memory_mb,
        )
        logger.info("step %d of %d: loss %.4f", point.step, state.max_steps, point.loss)
        self._add(Metric(train=point), progress)

    def _write_eval_point(self, args: TrainingArguments, state: TrainerState, loss: float) -> None:
        if not math.isfinite(loss):
            # Should the weights be no numbers, the next step's loss says so.
            logger.warning("step %d: the held-out rows' loss is %s", state.global_step, loss)
            return
        progress = self._progress(args, state)
        logger.info("step %d: loss on held-out rows %.4f", state.global_step, loss)
        point = EvalPoint(step=state.global_step, epoch=progress.epoch, loss=loss)
        self._add(Metric(eval=point), progress)

    def _add(self, metric: Metric, progress: Progress) -> None:
        append_metric(self._attempt, metric)
        self._report(progress, metric)

    def _progress(self, args: TrainingArguments, state: TrainerState) -> Progress:
        return Progress(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=round(state.epoch or 0.0, 4),
            percent=round(100 * state.global_step / max(state.max_steps, 1), 2),
            tokens_per_second=_rounded(self._eta.tokens_per_second),
            eta_seconds=_rounded(self._eta.seconds_left),
            memory_mb=_rounded(_memory_mb(args.device)),
            restarts=self._num_begun - 1,
        )

    def _report(self, progress: Progress, metric: Metric | None = None) -> None:
        self._reported_at_s = time.monotonic()
        self.progress = progress
        try:
            self._store.report(self._claim, progress, metric)
        except RedisError as error:
            # The volume has the curve; a run of hours must not end because Redis is being restarted.
            logger.warning("cannot report progress: %s", error)


def diverged(step: int) -> InvalidError:
    return InvalidError(
        f"the loss became infinite or not a number by step {step}: lower config.training."
        "learning_rate (a tenth is a good next try), or raise warmup_steps",
        code="training_diverged",
    )


def _plan(
    args: TrainingArguments,
    state: TrainerState,
    train_dataloader: DataLoader[Any] | None,
    eval_dataset: Dataset | None,
) -> Plan:
    steps_per_epoch = tokens_per_epoch = None
    if train_dataloader is not None:
        steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        tokens_per_epoch = _count_tokens(train_dataloader.dataset)
    evaluates = args.eval_strategy == IntervalStrategy.STEPS
    saves = args.save_strategy == SaveStrategy.STEPS
    return Plan(
        total_steps=state.max_steps,
        steps_per_epoch=steps_per_epoch,
        tokens_per_epoch=tokens_per_epoch,
        evaluation_steps=state.eval_steps if evaluates else None,
        evaluation_tokens=_count_tokens(eval_dataset),
        checkpoint_steps=state.save_steps if saves else None,
    )


def _count_tokens(dataset: object) -> int | None:
    """All `input_ids` of a dataset, through Arrow: no row becomes a Python list."""
    if not isinstance(dataset, Dataset):
        return None
    batches = dataset.select_columns("input_ids").with_format("arrow").iter(10_000)
    lengths = (pyarrow.compute.list_value_length(batch["input_ids"]) for batch in batches)
    return sum(int(pyarrow.compute.sum(length).as_py()) for length in lengths)


def _memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
