"""How a job's record lies in the fields of its hash in Redis."""

import json
from typing import Any

from pydantic import ValidationError

from core.errors import ConflictError
from core.jobs import Job, Priority

# Priority goes before age, which is in seconds.
_PRIORITY_SCORES = {Priority.HIGH: 0, Priority.NORMAL: 10**10, Priority.LOW: 2 * 10**10}


class UnreadableJobError(ConflictError):
    """The record of a job is not one: damaged, or written by another release."""

    code = "job_unreadable"

    def __init__(self, job_id: str, status: str | None, error: ValueError | TypeError) -> None:
        super().__init__(
            f"job {job_id} is {status}, and its record cannot be read: {_first_fault(error)}; it can be "
            "cancelled and, once it has ended, deleted"
        )


def record_fields(job: Job) -> dict[str, Any]:
    """Those of a new job."""
    return {
        "record": job.model_dump_json(
            include={"id", "adapter", "dataset_id", "priority", "config", "metadata"}
        ),
        "device": job.config.device,
        "queue_score": _PRIORITY_SCORES[job.priority] + job.created_at.timestamp(),
        "created_at": job.created_at.isoformat(),
        "warnings": json.dumps(job.warnings),
    }


def read_record(job_id: str, fields: dict[str, str]) -> Job:
    """Raises UnreadableJobError."""
    try:
        return _parse(fields)
    except (ValueError, TypeError) as error:
        raise UnreadableJobError(job_id, fields.get("status"), error) from error


def dataset_of(record: str) -> str | None:
    """The dataset that a record's job trains on, though the rest be unreadable; None where that is, too."""
    try:
        dataset_id = json.loads(record)["dataset_id"]
    except (ValueError, TypeError, KeyError):
        return None
    return dataset_id if isinstance(dataset_id, str) else None


def _parse(fields: dict[str, str]) -> Job:
    values: dict[str, Any] = json.loads(fields["record"])
    for name in ("progress", "error", "evaluation", "warnings", "resolved"):
        if name in fields:
            values[name] = json.loads(fields[name])
    for name in ("status", "created_at", "started_at", "finished_at", "adapter_version", "attempt"):
        if name in fields:
            values[name] = fields[name]
    return Job.model_validate(values)


def _first_fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
