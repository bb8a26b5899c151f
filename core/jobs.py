"""A fine-tuning job: its record and the states it may pass through."""

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat

from core.training_config import JobConfig


class JobStatus(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    EVALUATING = "evaluating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
# A worker holds these; with no lease left, its worker is dead.
CLAIMED = frozenset(
    {
        JobStatus.PREPARING,
        JobStatus.RUNNING,
        JobStatus.PAUSING,
        JobStatus.EVALUATING,
        JobStatus.CANCELLING,
    }
)


class Priority(StrEnum):
    """Which jobs start first; of one priority, the oldest does."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# JSON has no inf and no nan: a gradient that overflowed is None.
OptionalFinite = Annotated[float | None, AfterValidator(_finite)]


class Progress(BaseModel):
    """How far a job is. `percent` is of optimiser steps; `eta_seconds` is measured, not assumed.

    `tokens_per_second` is of the newest steps, without the time that evaluations and checkpoints take.
    `memory_mb` is as in TrainPoint. `restarts`: how often this attempt began anew, with smaller batches, after it ran
    out of memory (`auto_find_batch_size`); the points of the curve before that no longer count.
    """

    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    percent: float = 0.0
    tokens_per_second: OptionalFinite = None
    eta_seconds: OptionalFinite = None
    memory_mb: OptionalFinite = None
    restarts: int = 0


class TrainPoint(BaseModel):
    """One logged optimiser step. `loss` is the mean over the steps since the last point.

    `memory_mb`: the peak of GPU memory since the run began, or the process's resident set on a CPU; MiB.
    """

    step: int
    epoch: float
    loss: FiniteFloat
    learning_rate: OptionalFinite = None
    grad_norm: OptionalFinite = None
    tokens_per_second: OptionalFinite = None
    memory_mb: OptionalFinite = None


class EvalPoint(BaseModel):
    """The mean loss over the held-out rows' answers."""

    step: int
    epoch: float | None = None
    loss: FiniteFloat


class LossCurve(BaseModel):
    train: list[TrainPoint] = []
    eval: list[EvalPoint] = []


class Scores(BaseModel):
    """sacreBLEU's corpus scores, 0 to 100."""

    bleu: float
    chrf: float


class Sample(BaseModel):
    """One held-out row as each translator answers it."""

    source: str
    reference: str
    base: str
    current: str | None = None
    candidate: str


class Evaluation(BaseModel):
    """The judgement on a job's version, on rows that it was not trained on.

    `gain` is in points of `metric` over `against` ("base" or a version); `p_value` that of sacreBLEU's paired
    bootstrap for that difference. `reason` says why the version was made current, or why not.
    """

    metric: Literal["bleu", "chrf"]
    rows: int
    against: str
    base: Scores
    current: Scores | None
    candidate: Scores
    gain: float
    p_value: float | None
    promoted: bool
    reason: str
    signatures: dict[str, str] = {}
    samples: list[Sample] = []


class JobError(BaseModel):
    code: str
    message: str


class Place(BaseModel):
    """Where a queued job stands: 1 is the next one. `expected_start` is None where nothing tells it."""

    position: int
    expected_start: datetime | None = None


class Job(BaseModel):
    """The record in Redis. The loss curve is not in it: the volume has it (see core.metrics).

    `config` is what was asked for; `resolved` is what the worker's device and base model made of it. `metadata` is its
    sender's own.
    """

    model_config = ConfigDict(extra="ignore")

    id: str
    adapter: str
    adapter_version: int | None = None
    dataset_id: str
    priority: Priority = Priority.NORMAL
    config: JobConfig
    resolved: JobConfig | None = None
    status: JobStatus = JobStatus.QUEUED
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress = Progress()
    evaluation: Evaluation | None = None
    error: JobError | None = None
    warnings: list[str] = []
    metadata: dict[str, str] = {}
    attempt: int = 0
