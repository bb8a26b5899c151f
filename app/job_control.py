"""What requests do to jobs, in whatever shape they come: submit and cancel."""

import secrets
from collections.abc import Collection
from datetime import UTC, datetime

from app.schemas import JobRequest
from app.services import Services
from core.adapters import check_adapter_name
from core.errors import InvalidError
from core.jobs import ENDED, Job, JobStatus
from core.target_modules import match_target_modules
from core.training_config import JobConfig


def submit_job(
    services: Services,
    wanted: JobRequest,
    idempotency_key: str = "",
    metadata: dict[str, str] | None = None,
) -> Job:
    """Record first, then the message: a job can be late, but not lost.

    A retry, by its key, gives the job that there is, whatever has become of the dataset. Raises NotFoundError
    `dataset_not_found`, UnavailableError `queue_full`, and InvalidError where the base model cannot take the config.
    """
    if known := services.jobs.find_by_key(idempotency_key):
        return known
    check_config(services, wanted.adapter, wanted.config)
    hidden_size = services.require_serving().engine.hidden_size
    with services.jobs.dataset_lock(wanted.dataset_id):
        dataset = services.datasets.get(wanted.dataset_id)
        job = Job(
            id=f"job-{secrets.token_hex(8)}",
            adapter=wanted.adapter,
            dataset_id=dataset.id,
            priority=wanted.priority,
            config=wanted.config.settled(num_rows=dataset.rows, hidden_size=hidden_size),
            metadata=metadata or {},
            created_at=datetime.now(UTC),
        )
        made = services.jobs.create(
            job, max_queued=services.settings.max_queued_jobs, idempotency_key=idempotency_key
        )
    if made.id == job.id:
        services.send(job.id)
    return made


def check_config(services: Services, adapter: str, config: JobConfig) -> None:
    """What can be refused before anything is stored. Raises InvalidError."""
    check_adapter_name(adapter)
    engine = services.require_serving().engine
    targets = config.lora.target_modules
    if not isinstance(targets, str):
        match_target_modules(targets, engine.target_modules)
    if config.lora.r > engine.max_rank:
        raise InvalidError(
            f"lora.r is {config.lora.r}; this server serves ranks up to {engine.max_rank} "
            "(DRAGOMAN_LORA_WIDTH)",
            code="rank_too_large",
        )
    # A preset's length is for another base; the worker takes what this one can, and says so.
    if config.preset is None and config.training.max_length > engine.max_tokens:
        raise InvalidError(
            f"training.max_length is {config.training.max_length}; this base model's context takes "
            f"{engine.max_tokens}",
            code="max_length_too_large",
        )


def lacks_worker(job: Job, devices: Collection[str]) -> str | None:
    """What to tell of a job that is queued, where no worker will take it: those there are, are for `devices`."""
    wanted = job.config.device
    if job.status != JobStatus.QUEUED or wanted in devices or (wanted == "auto" and devices):
        return None
    if wanted == "auto":
        return "no worker is there now, so the job waits for one, on a CPU or a GPU"
    waits = f"config.device: no worker for {wanted!r} is there now, so the job waits for one"
    if not devices:
        return f"{waits}; nor is there any other"
    there = " and ".join(map(repr, devices))
    return f"{waits}; that for {there} takes jobs with {there} or 'auto'"


def cancel_job(services: Services, job_id: str, *, publish: bool = False) -> Job:
    """Raises NotFoundError `job_not_found`, and ConflictError where its state forbids it."""
    job = services.jobs.cancel(job_id, publish=publish)
    if job.status == JobStatus.QUEUED:
        services.send(job.id)  # a worker has to publish what it has learnt
    elif job.status in ENDED:
        services.volume.remove_checkpoints(job.id)
    return job
