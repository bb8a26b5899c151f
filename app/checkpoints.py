"""What `job:{id}` and `job:{id}@{step}` stand for: the newest checkpoint of a job that has not ended, or the one of a step."""

from datetime import datetime
from typing import NoReturn

from pydantic import BaseModel, Field

from core.adapter_version import JOB_PREFIX, AdapterVersion
from core.checkpoints import find_checkpoints
from core.errors import ConflictError, NotFoundError
from core.job_store import JobStore
from core.jobs import ENDED, Job
from core.volume import Volume


class JobCheckpoint(BaseModel):
    """What a job has learnt by a step, as long as it is kept."""

    step: int
    created_at: datetime
    adapter: str = Field(
        description="what POST /translate calls it; without `@` and the step, the newest one",
        examples=["job:job-83b521fd71f978a9@63"],
    )


def list_checkpoints(volume: Volume, job_id: str) -> list[JobCheckpoint]:
    """Those that can be translated with, the newest first."""
    return [
        JobCheckpoint(step=c.version, created_at=c.seal.created_at, adapter=c.ref)
        for c in find_checkpoints(volume, job_id)
    ]


class CheckpointFinder:
    """Looks on the volume, and asks for the job's record only to say why nothing is there."""

    def __init__(self, volume: Volume, jobs: JobStore, interval_minutes: float) -> None:
        """`interval_minutes`: between two checkpoints of a job whose config names no steps."""
        self._volume = volume
        self._jobs = jobs
        self._interval_minutes = interval_minutes

    def find(self, ref: str) -> AdapterVersion:
        """The checkpoint that `ref` asks for, as it lies on the volume now.

        Raises NotFoundError `job_not_found` or `checkpoint_not_found`, with the steps that exist, or ConflictError
        `checkpoint_not_ready` or `job_ended`.
        """
        job_id, at, step = ref.removeprefix(JOB_PREFIX).partition("@")
        found = find_checkpoints(self._volume, job_id)
        if not found:
            self._raise_none(self._jobs.get(job_id))
        if not at:
            return found[0]
        for checkpoint in found:
            if str(checkpoint.version) == step:
                return checkpoint
        steps = [c.version for c in found]
        raise NotFoundError(
            f"job {job_id} has no checkpoint of step {step[:20]!r}; there are steps "
            f"{', '.join(map(str, steps))}, the newest as {JOB_PREFIX + job_id!r}",
            code="checkpoint_not_found",
            checkpoints=steps,
        )

    def _raise_none(self, job: Job) -> NoReturn:
        if job.status in ENDED:
            made = "no version"
            if job.adapter_version is not None:
                made = f"{job.adapter}@{job.adapter_version}: ask for that"
            raise ConflictError(
                f"job {job.id} has ended ({job.status}) and keeps no checkpoints; it published {made}",
                code="job_ended",
            )
        total = job.progress.total_steps
        at = f"at step {job.progress.step} of {total}" if total else "before its first step"
        raise ConflictError(
            f"job {job.id} has no checkpoint yet; it is {job.status}, {at}. {self._when(job)}",
            code="checkpoint_not_ready",
        )

    def _when(self, job: Job) -> str:
        """When there will be one; see worker.arguments and worker.checkpoints."""
        training = (job.resolved or job.config).training
        num_steps = training.save_steps
        if training.early_stopping_patience is not None:
            num_steps = training.eval_steps
            if num_steps is None:
                return "The first one comes with its first evaluation on held-out rows"
        if num_steps is None:
            return (
                f"One comes after every {self._interval_minutes:g} minutes of training "
                "(DRAGOMAN_CHECKPOINT_MINUTES; or training.save_steps, in a job's config), when the job "
                "is paused, and after its last step"
            )
        step = (job.progress.step // num_steps + 1) * num_steps
        total = job.progress.total_steps
        return f"The next one comes after step {min(step, total) if total else step}"
