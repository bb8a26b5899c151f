"""A fine-tuning job: its record and the states it may pass through."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

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
    {JobStatus.PREPARING, JobStatus.RUNNING, JobStatus.EVALUATING, JobStatus.CANCELLING}
)


class Progress(BaseModel):
    """How far a job is. `percent` is of optimiser steps; `eta_seconds` is measured, not assumed."""

    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    percent: float = 0.0
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class TrainPoint(BaseModel):
    """One logged optimiser step. `loss` is the mean over the steps since the last point."""

    step: int
    epoch: float
    loss: float
    learning_rate: float | None = None
    grad_norm: float | None = None


class EvalPoint(BaseModel):
    step: int
    loss: float


class LossCurve(BaseModel):
    train: list[TrainPoint] = []
    eval: list[EvalPoint] = []


class JobError(BaseModel):
    code: str
    message: str


class Job(BaseModel):
    """The record in Redis. The loss curve is not in it: the volume has it (see core.metrics)."""

    model_config = ConfigDict(extra="ignore")

    id: str
    adapter: str
    adapter_version: int | None = None
    dataset_id: str
    config: JobConfig
    status: JobStatus = JobStatus.QUEUED
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress = Progress()
    evaluation: dict[str, Any] | None = None
    error: JobError | None = None
    warnings: list[str] = []
    attempt: int = 0
