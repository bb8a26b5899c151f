"""Fine-tuning jobs: the jobs, in OpenAI's shape. A suffix is the adapter's name, a fine-tuned model its version."""

import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool

from app import checkpoints
from app.deps import JobsDep, ServicesDep
from app.forms import read_json, validate
from app.job_control import cancel_job, submit_job
from app.routes.openai.events import read_events
from app.routes.openai.models import find_route
from app.routes.openai.shapes import (
    Checkpoint,
    CheckpointMetrics,
    ChosenHyperparameters,
    ChosenMethod,
    ChosenSupervised,
    FineTuningError,
    FineTuningEvent,
    FineTuningJob,
    FineTuningRequest,
    Page,
)
from app.schemas import JobRequest
from app.services import Services
from core.adapters import BASE
from core.errors import InvalidError, ServiceError
from core.jobs import Job, JobStatus, LossCurve
from core.metrics import read_curve
from core.training_config import JobConfig

router = APIRouter(prefix="/v1/fine_tuning/jobs")

_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/FineTuningRequest"}}},
}
# OpenAI knows fewer states.
_STATUS = {
    JobStatus.PREPARING: "validating_files",
    JobStatus.EVALUATING: "running",
    JobStatus.PAUSING: "running",
    JobStatus.CANCELLING: "running",
}
_Limit = Annotated[int, Query(ge=1, le=100)]
_After = Annotated[str | None, Query(max_length=120)]


@router.post("", openapi_extra={"requestBody": _BODY})
async def create_fine_tuning_job(
    request: Request,
    services: ServicesDep,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> FineTuningJob:
    """Fine-tune an adapter, named by `suffix`, of the base model on an uploaded file."""
    wanted = validate(FineTuningRequest, await read_json(request))
    return await run_in_threadpool(_submit, services, wanted, idempotency_key or "")


@router.get("")
def list_fine_tuning_jobs(
    request: Request, services: ServicesDep, limit: _Limit = 20, after: _After = None
) -> Page[FineTuningJob]:
    """Jobs, newest first; `metadata[key]=value` picks those that carry it."""
    wanted = {
        key.removeprefix("metadata[").removesuffix("]"): value
        for key, value in request.query_params.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    found: list[Job] = []
    while len(found) <= limit:
        jobs = services.jobs.find(limit=100, after=after)
        found += [job for job in jobs if wanted.items() <= job.metadata.items()]
        if len(jobs) < 100:
            break
        after = jobs[-1].id
    return Page(data=[_show(job, services) for job in found[:limit]], has_more=len(found) > limit)


@router.get("/{job_id}")
def get_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """One job."""
    return _show(services.jobs.get(job_id), services)


@router.post("/{job_id}/cancel")
def cancel_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """Cancel a job: at once if it waits, at the next step if it runs."""
    return _show(cancel_job(services, job_id), services)


@router.post("/{job_id}/pause")
def pause_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """Pause a job: it keeps what it has learnt, and its place."""
    return _show(services.jobs.pause(job_id), services)


@router.post("/{job_id}/resume")
def resume_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """Go on with a paused job."""
    job = services.jobs.resume(job_id)
    services.send(job.id)
    return _show(job, services)


@router.get("/{job_id}/events")
def list_events(
    job_id: str, services: ServicesDep, limit: _Limit = 20, after: _After = None
) -> Page[FineTuningEvent]:
    """What happened to a job, newest first: its states, its loss step by step, its evaluation."""
    job = services.jobs.get(job_id)
    events = read_events(services.redis, job, limit + 1, after)
    return Page(data=events[:limit], has_more=len(events) > limit)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(job_id: str, services: ServicesDep, jobs: JobsDep) -> Page[Checkpoint]:
    """What of a job can be served, newest first: what it has learnt so far and, in the end, the version it published."""
    job = jobs.get(job_id)
    curve = read_curve(services.volume.newest_attempt(job.id))
    found = [
        _checkpoint(f"{job.id}-{c.step}", job, curve, c.adapter, c.step, c.created_at)
        for c in checkpoints.list_checkpoints(services.volume, job.id)
    ]
    if job.adapter_version is not None and job.finished_at is not None:
        ref = f"{job.adapter}@{job.adapter_version}"
        last = _checkpoint(job.id, job, curve, ref, job.progress.step, job.finished_at)
        found.insert(0, last)
    return Page(
        data=found,
        first_id=found[0].id if found else None,
        last_id=found[-1].id if found else None,
    )


def _checkpoint(
    name: str, job: Job, curve: LossCurve, model: str, step: int, created_at: datetime
) -> Checkpoint:
    train = [p.loss for p in curve.train if p.step <= step]
    judged = [p.loss for p in curve.eval if p.step <= step]
    return Checkpoint(
        id=f"ftckpt-{name}",
        created_at=_seconds(created_at),
        fine_tuned_model_checkpoint=model,
        fine_tuning_job_id=job.id,
        step_number=step,
        metrics=CheckpointMetrics(
            step=step,
            train_loss=train[-1] if train else None,
            full_valid_loss=judged[-1] if judged else None,
        ),
    )


def _submit(services: Services, wanted: FineTuningRequest, idempotency_key: str) -> FineTuningJob:
    _check_supported(services, wanted)
    adapter = wanted.suffix or f"ft-{secrets.token_hex(4)}"
    request = JobRequest(
        dataset_id=wanted.training_file, adapter=adapter, config=_config(services, wanted)
    )
    job = submit_job(services, request, idempotency_key, wanted.metadata)
    return _show(job, services)


def _check_supported(services: Services, wanted: FineTuningRequest) -> None:
    if find_route(services.require_serving().translator, wanted.model).version is not None:
        raise InvalidError(
            f"model is {wanted.model!r}, an adapter; only {BASE!r} can be fine-tuned, and `suffix` names the "
            "adapter to make a new version of",
            code="model_not_trainable",
        )
    if wanted.method is not None and wanted.method.type != "supervised":
        raise InvalidError(
            f"method.type is {wanted.method.type[:80]!r}; only 'supervised' is accepted",
            code="method_unsupported",
        )
    if wanted.validation_file is not None:
        raise InvalidError(
            "validation_file is not accepted: rows of training_file are held out and judged by; "
            "config.evaluation.holdout says how many",
            code="validation_file_unsupported",
        )
    if wanted.integrations:
        raise InvalidError(
            "integrations are not accepted; config.training.report_to names them here",
            code="integrations_unsupported",
        )


def _config(services: Services, wanted: FineTuningRequest) -> JobConfig:
    """`config` with OpenAI's hyperparameters over it."""
    asked = wanted.wanted_hyperparameters
    training: dict[str, Any] = {}
    if wanted.seed is not None:
        training["seed"] = wanted.seed
    if asked.n_epochs not in ("auto", None):
        training["num_train_epochs"] = asked.n_epochs
    if asked.batch_size not in ("auto", None):
        training["per_device_train_batch_size"] = asked.batch_size
    if isinstance(asked.learning_rate_multiplier, int | float):
        training["learning_rate"] = _default_rate(services) * asked.learning_rate_multiplier
    given = wanted.config.model_dump(exclude_unset=True)
    return validate(JobConfig, given | {"training": given.get("training", {}) | training})


def _default_rate(services: Services) -> float:
    hidden_size = services.require_serving().engine.hidden_size
    rate = JobConfig().settled(num_rows=1, hidden_size=hidden_size).training.learning_rate
    assert rate is not None, "a settled config has a rate"
    return rate


def _show(job: Job, services: Services) -> FineTuningJob:
    config = job.resolved or job.config
    training = config.training
    rate = _default_rate(services)
    epochs = training.num_train_epochs
    chosen = ChosenHyperparameters(
        n_epochs=int(epochs) if epochs == int(epochs) else "auto",
        batch_size=training.per_device_train_batch_size,
        learning_rate_multiplier=float(f"{(training.learning_rate or rate) / rate:.4g}"),
    )
    version = f"{job.adapter}@{job.adapter_version}" if job.adapter_version is not None else None
    tokens = None
    if version is not None:
        with suppress(ServiceError):  # deleted since, or broken
            tokens = services.registry.resolve(version).seal.metrics.get("tokens")
    estimate = None
    if job.progress.eta_seconds is not None and job.finished_at is None:
        estimate = _seconds(datetime.now(UTC) + timedelta(seconds=job.progress.eta_seconds))
    return FineTuningJob(
        id=job.id,
        model=BASE,
        created_at=_seconds(job.created_at),
        finished_at=_seconds(job.finished_at) if job.finished_at else None,
        estimated_finish=estimate,
        fine_tuned_model=version,
        status=_STATUS.get(job.status, str(job.status)),
        training_file=job.dataset_id,
        trained_tokens=tokens,
        seed=training.seed,
        error=FineTuningError(**job.error.model_dump()) if job.error else None,
        hyperparameters=chosen,
        method=ChosenMethod(supervised=ChosenSupervised(hyperparameters=chosen)),
        metadata=job.metadata,
        user_provided_suffix=job.adapter,
    )


def _seconds(time: datetime) -> int:
    return int(time.timestamp())
