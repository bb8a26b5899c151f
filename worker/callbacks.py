"""What the trainer tells while it trains: the loss curve and the progress; and where it is made to stop."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from redis import RedisError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.errors import InvalidError
from core.job_store import Claim, JobStore
from core.jobs import Progress, TrainPoint
from core.metrics import Metric, append_metric

logger = logging.getLogger(__name__)

_NUM_SPEED_STEPS = 20
_PROGRESS_INTERVAL_S = 1.0


class _Mark(NamedTuple):
    """Where the run was at one moment."""

    time_s: float
    step: int
    num_tokens: int


class JobCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the curve to the volume, then announces it; `check` raises if the run should stop."""

    def __init__(
        self, store: JobStore, claim: Claim, attempt: Path, check: Callable[[], None]
    ) -> None:
        self._store = store
        self._claim = claim
        self._attempt = attempt
        self._check = check
        self._marks: deque[_Mark] = deque(maxlen=_NUM_SPEED_STEPS + 1)
        self._reported_at_s = 0.0
        self.progress = Progress()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._report(Progress(total_steps=state.max_steps))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._check()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._check()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._marks.append(
            _Mark(time.monotonic(), state.global_step, int(state.num_input_tokens_seen))
        )
        if state.global_step >= state.max_steps:
            control.should_log = True  # the curve's last point, whatever logging_steps divides
        if not control.should_log and time.monotonic() - self._reported_at_s > _PROGRESS_INTERVAL_S:
            self._report(self._progress(state))
        self._check()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end
        if not math.isfinite(logs["loss"]):
            raise diverged(state.global_step)
        point = TrainPoint(
            step=state.global_step,
            epoch=round(state.epoch or 0.0, 4),
            loss=logs["loss"],
            learning_rate=_finite(logs.get("learning_rate")),
            grad_norm=_finite(logs.get("grad_norm")),
        )
        metric = Metric(train=point)
        append_metric(self._attempt, metric)
        logger.info("step %d of %d: loss %.4f", point.step, state.max_steps, point.loss)
        self._report(self._progress(state), metric)

    def _progress(self, state: TrainerState) -> Progress:
        progress = Progress(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=round(state.epoch or 0.0, 4),
            percent=round(100 * state.global_step / max(state.max_steps, 1), 2),
        )
        if len(self._marks) < 2:  # the first step also warms up; it says nothing about the others
            return progress
        first, last = self._marks[0], self._marks[-1]
        elapsed_s = max(last.time_s - first.time_s, 1e-6)
        step_s = elapsed_s / (last.step - first.step)
        progress.tokens_per_second = round((last.num_tokens - first.num_tokens) / elapsed_s, 1)
        progress.eta_seconds = round(step_s * (state.max_steps - state.global_step), 1)
        return progress

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


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
