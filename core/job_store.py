"""Job records in Redis. Every change is one Lua script (see core.job_scripts).

Keys: `dragoman:job:{id}` (hash), `…:lease` (fencing token, expires), `…:events` (stream), `dragoman:jobs` (all ids by
creation time), `dragoman:jobs:open` (ids of jobs that have not ended), `dragoman:jobs:queue:{device}` (ids of queued
jobs by priority, then age), `dragoman:jobs:durations` (seconds that the newest finished jobs took),
`dragoman:dataset:{id}:lock`; and those of presence.py.

A worker holds a job by a lease that it must renew. Its fencing token (Kleppmann 2016, "How to do distributed locking")
changes with every claim and every sweep, so a worker that was given up can no longer write.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from redis import Redis
from redis.lock import Lock

from core import job_scripts
from core.errors import ConflictError, NotFoundError, UnavailableError
from core.job_forecast import forecast
from core.job_record import UnreadableJobError, dataset_of, read_record, record_fields
from core.jobs import (
    CLAIMED,
    ENDED,
    Evaluation,
    Job,
    JobError,
    JobStatus,
    Place,
    Progress,
)
from core.metrics import Metric
from core.presence import Presence
from core.queue import queue_name
from core.training_config import JobConfig

logger = logging.getLogger(__name__)

_ALL = "dragoman:jobs"
_OPEN = "dragoman:jobs:open"
_QUEUES = "dragoman:jobs:queue:"
_DURATIONS = "dragoman:jobs:durations"
_IDEMPOTENCY = "dragoman:idempotency:"
_DEVICES = ("auto", "cpu", "cuda")
_NUM_DURATIONS = 20
_RESEND_AFTER_S = 5.0
_LOCK_S = 30.0  # after which it is free, should its holder have been killed


class LeaseLostError(Exception):
    """This worker no longer holds the job; it must stop and write nothing more."""


class Claim(BaseModel):
    """A worker's hold on a job."""

    job: Job
    token: int


class Standing(NamedTuple):
    """How a claimed job stands. `publishes`: should it be cancelled, what it has learnt is published."""

    status: JobStatus
    publishes: bool


class JobStore:
    """The only writer and reader of job records; used by the server and the worker. Thread-safe."""

    def __init__(self, redis: "Redis", *, lease_s: float, max_attempts: int) -> None:
        self._redis = redis
        self.presence = Presence(redis)
        self._lease_ms = int(lease_s * 1000)
        self._max_attempts = max_attempts
        self._create = redis.register_script(job_scripts.CREATE)
        self._claim = redis.register_script(job_scripts.CLAIM)
        self._renew = redis.register_script(job_scripts.RENEW)
        self._write = redis.register_script(job_scripts.WRITE)
        self._release = redis.register_script(job_scripts.RELEASE)
        self._cancel = redis.register_script(job_scripts.CANCEL)
        self._pause = redis.register_script(job_scripts.PAUSE)
        self._resume = redis.register_script(job_scripts.RESUME)
        self._delete = redis.register_script(job_scripts.DELETE)
        self._sweep = redis.register_script(job_scripts.SWEEP)

    # What anyone may do

    def create(self, job: Job, *, max_queued: int, idempotency_key: str = "") -> Job:
        """Writes the record of a new job, or returns the one that `idempotency_key` (kept a day) made before.

        Raises UnavailableError `queue_full`.
        """
        key = f"{_IDEMPOTENCY}{idempotency_key}" if idempotency_key else ""
        answer = self._create(
            keys=_keys(job.id),
            args=[
                job.id,
                json.dumps(record_fields(job)),
                _now(),
                job.created_at.timestamp(),
                key,
                86_400,
                max_queued,
            ],
        )
        if answer == "full":
            raise UnavailableError(
                f"{max_queued} jobs are queued already; try again when one has started",
                code="queue_full",
                retry_after_s=30,
            )
        return self.get(str(answer))

    def find_by_key(self, idempotency_key: str) -> Job | None:
        """The job that the key made, if it made one and that was not deleted. Raises UnreadableJobError."""
        job_id = self._redis.get(_IDEMPOTENCY + idempotency_key) if idempotency_key else None
        if job_id is None:
            return None
        with suppress(NotFoundError):
            return self.get(str(job_id))
        return None

    def get(self, job_id: str) -> Job:
        """Raises NotFoundError `job_not_found`, or UnreadableJobError."""
        _check_id(job_id)
        try:
            fields: dict[str, str] = self._redis.hgetall(f"dragoman:job:{job_id}")  # type: ignore[assignment]
        except UnicodeDecodeError as error:
            raise UnreadableJobError(job_id, self.status(job_id), error) from error
        if "record" not in fields:
            raise _not_found(job_id)
        return read_record(job_id, fields)

    def status(self, job_id: str) -> str:
        """Of a job whose record may be unreadable. Raises NotFoundError."""
        return self._field(job_id, "status")

    def device(self, job_id: str) -> str:
        """Which workers the message of a job is for, though its record be unreadable. Raises NotFoundError."""
        return self._field(job_id, "device")

    def _field(self, job_id: str, name: str) -> str:
        _check_id(job_id)
        value = self._redis.hget(f"dragoman:job:{job_id}", name)
        if value is None:
            raise _not_found(job_id)
        return str(value)

    def find(
        self,
        *,
        status: JobStatus | None = None,
        adapter: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> list[Job]:
        """Newest first; `after` is the id of the last job of the page before. Unreadable ones are left out."""
        ids: list[str] = self._redis.zrevrange(_ALL, 0, -1)  # type: ignore[assignment]
        if after is not None:
            ids = ids[ids.index(after) + 1 :] if after in ids else []
        wanted = (
            job
            for job in self._present(ids)
            if (status is None or job.status == status) and adapter in (None, job.adapter)
        )
        return list(islice(wanted, limit))

    def count_open(self) -> dict[str, int]:
        """How many jobs are in each status that has not ended."""
        counts: dict[str, int] = {}
        for job_id in self._open_ids():
            status = self._redis.hget(f"dragoman:job:{job_id}", "status")
            if status:
                counts[str(status)] = counts.get(str(status), 0) + 1
        return counts

    def uses_dataset(self, dataset_id: str) -> bool:
        """Whether a job that has not ended trains on it, or may, as its record does not tell."""
        for job_id in self._open_ids():
            try:
                record = self._redis.hget(f"dragoman:job:{job_id}", "record")
            except UnicodeDecodeError:
                record = ""
            if record is None:
                continue  # deleted meanwhile
            used = dataset_of(str(record))
            if used is None:
                logger.warning(
                    "the record of job %s names no dataset, so all are taken to be in use", job_id
                )
            if used in (None, dataset_id):
                return True
        return False

    def dataset_lock(self, dataset_id: str) -> Lock:
        """To be held from the look at a dataset until a job on it is recorded, or it is deleted: never both at once."""
        name = f"dragoman:dataset:{dataset_id}:lock"
        lock: Lock = self._redis.lock(
            name, timeout=_LOCK_S, sleep=0.01, raise_on_release_error=False
        )
        return lock

    def cancel(self, job_id: str, *, publish: bool = False) -> Job:
        """Ends a waiting job at once; a claimed one becomes `cancelling` until its worker has stopped.

        `publish`: what it has learnt so far is judged and published first. A waiting job that has learnt something goes
        to a worker for that. Raises NotFoundError, or ConflictError `job_ended`.
        """
        before = self._order(self._cancel, job_id, "1" if publish else "")
        if before in ENDED:
            raise ConflictError(
                f"job {job_id} is {before}; only a job that has not ended can be cancelled",
                code="job_ended",
            )
        return self.get(job_id)

    def pause(self, job_id: str) -> Job:
        """Takes a job out of the queue, or asks its worker to keep a checkpoint and let it go.

        Raises NotFoundError, or ConflictError `job_not_pausable`.
        """
        before = self._order(self._pause, job_id)
        job = self.get(job_id)
        if before != JobStatus.PAUSING and job.status == before:
            raise ConflictError(
                f"job {job_id} is {before}; only one that is queued, preparing or running can be paused",
                code="job_not_pausable",
            )
        return job

    def resume(self, job_id: str) -> Job:
        """Puts a paused job back into the queue, in its old place. Raises NotFoundError, ConflictError `job_not_paused`."""
        before = self._order(self._resume, job_id)
        if before != JobStatus.PAUSED:
            raise ConflictError(
                f"job {job_id} is {before}; only a paused one can be resumed", code="job_not_paused"
            )
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Removes an ended job's record and events. Raises NotFoundError, ConflictError `job_not_ended`."""
        before = self._order(self._delete, job_id, has_time=False)
        if before not in ENDED:
            raise ConflictError(
                f"job {job_id} is {before}; only one that has ended can be deleted: cancel it first",
                code="job_not_ended",
            )

    def _order(self, script: Any, job_id: str, *args: str, has_time: bool = True) -> str:
        """Runs a script that anyone may; the status that the job had."""
        _check_id(job_id)
        before = script(keys=_keys(job_id), args=[job_id, *([_now()] if has_time else []), *args])
        if not before:
            raise _not_found(job_id)
        return str(before)

    def mark_sent(self, job_id: str) -> None:
        """Its message is in the queue."""
        self._redis.hset(f"dragoman:job:{job_id}", "sent_at", _now())

    def sweep(self) -> list[str]:
        """Takes jobs from dead workers; returns the ids that must be sent to the queue (again), next first."""
        to_send: dict[str, float] = {}
        for job_id in self._open_ids():
            outcome = self._sweep(
                keys=_keys(job_id),
                args=[job_id, _now(), self._max_attempts, json.dumps(sorted(CLAIMED))],
            )
            if outcome:
                logger.warning("job %s lost its worker and is now %s", job_id, outcome)
            try:
                score = self._lacks_message(job_id)
            except ValueError as error:
                logger.warning("whether job %s lacks a message cannot be read: %s", job_id, error)
                continue
            if score is not None:
                to_send[job_id] = score
        return sorted(to_send, key=lambda i: to_send[i])

    def _lacks_message(self, job_id: str) -> float | None:
        """The job's place in the queue, if it is queued and no message will start it."""
        key = f"dragoman:job:{job_id}"
        names = ("status", "sent_at", "created_at", "attempt", "queue_score", "device")
        fields = self._redis.hmget(key, names)
        status, sent_at, created_at, attempt, score, device = (str(f) if f else "" for f in fields)
        if status != JobStatus.QUEUED or not created_at:
            return None
        # Never sent: its sender died, or Redis refused. Or sent, taken by a worker, and not claimed: that worker
        # died in between; Celery gives such a message back only after its visibility timeout, an hour later.
        age = datetime.now(UTC) - datetime.fromisoformat(sent_at or created_at)
        is_old = age.total_seconds() > _RESEND_AFTER_S or (attempt and not sent_at)
        is_waiting = sent_at and self._redis.exists(queue_name(device or "auto"))
        return float(score or 0) if is_old and not is_waiting else None

    def places(self) -> dict[str, Place]:
        """Where the queued jobs stand, and when they may be expected to start."""
        queued: list[tuple[float, str]] = []
        for device in _DEVICES:
            entries: Any = self._redis.zrange(_QUEUES + device, 0, -1, withscores=True)
            queued += [(float(score), str(job_id)) for job_id, score in entries]
        if not queued:
            return {}
        durations: Any = self._redis.lrange(_DURATIONS, 0, -1)
        return forecast(
            [job_id for _, job_id in sorted(queued)],
            [job for job in self._present(self._open_ids()) if job.status in CLAIMED],
            [float(seconds) for seconds in durations],
            now=datetime.now(UTC),
        )

    def _present(self, ids: Iterable[str]) -> Iterator[Job]:
        """Those that can be read and were not deleted meanwhile."""
        for job_id in ids:
            try:
                job = self.get(job_id)
            except NotFoundError:
                continue
            except UnreadableJobError as error:
                logger.warning("passed over: %s", error)
                continue
            yield job

    def _open_ids(self) -> list[str]:
        return [str(i) for i in self._redis.smembers(_OPEN)]

    # What only the worker that holds a job may do

    def claim(self, job_id: str) -> Claim | None:
        """Takes a queued job, atomically; None if another worker has it, or it waits no more.

        One that cannot be read fails: it would stand before all others for ever.
        """
        _check_id(job_id)
        device = self._redis.hget(f"dragoman:job:{job_id}", "device")
        token = self._claim(
            keys=_keys(job_id), args=[job_id, _now(), self._lease_ms, str(device or "auto")]
        )
        if not token:
            return None
        try:
            return Claim(job=self.get(job_id), token=token)
        except UnreadableJobError as unreadable:
            logger.error("failed: %s", unreadable)
            error = JobError(code=unreadable.code, message=unreadable.message)
            fields = {"error": error.model_dump_json()}
            self._fenced_write(job_id, token, fields, status="failed", expected=[*CLAIMED])
            return None

    def claim_next(self, device: str) -> Claim | None:
        """Takes the job of the highest priority, and of these the oldest, that may run on `device`; None if there is none."""
        while True:
            heads: list[tuple[float, str]] = []
            for name in ("auto", device):
                entries: Any = self._redis.zrange(_QUEUES + name, 0, 0, withscores=True)
                heads += [(float(score), str(job_id)) for job_id, score in entries]
            if not heads:
                return None
            job_id = min(heads)[1]
            if claim := self.claim(job_id):
                return claim
            if not self._redis.exists(f"dragoman:job:{job_id}"):
                for name in _DEVICES:
                    self._redis.zrem(_QUEUES + name, job_id)

    def renew(self, claim: Claim) -> Standing:
        """Prolongs the lease and tells how the job stands. Raises LeaseLostError."""
        answer = self._renew(
            keys=_keys(claim.job.id), args=[claim.job.id, claim.token, self._lease_ms]
        )
        if not answer:
            raise LeaseLostError(claim.job.id)
        return Standing(JobStatus(answer[0]), bool(answer[1]))

    def release(self, claim: Claim) -> None:
        """Hands the job back; the attempt does not count. Does nothing if the lease is lost.

        A job that was to be paused is `paused` then, one that was to be cancelled `cancelled` (unless something is to be
        published: that is left to the next worker), any other is queued.
        """
        self._release(keys=_keys(claim.job.id), args=[claim.job.id, claim.token, _now()])

    def move(
        self,
        claim: Claim,
        status: Literal["running", "evaluating", "succeeded", "failed", "cancelled"],
        *,
        adapter_version: int | None = None,
        error: JobError | None = None,
    ) -> bool:
        """Moves the job on; False if it is being paused or cancelled meanwhile. Raises LeaseLostError."""
        expected = {
            "running": [JobStatus.PREPARING],
            "evaluating": [JobStatus.RUNNING],
            # Once the version is published, a pause or a cancel that came too late does not unmake it.
            "succeeded": [
                JobStatus.RUNNING,
                JobStatus.EVALUATING,
                JobStatus.PAUSING,
                JobStatus.CANCELLING,
            ],
            "failed": sorted(CLAIMED),
            "cancelled": [JobStatus.CANCELLING],
        }[status]
        fields: dict[str, str] = {}
        if adapter_version is not None:
            fields["adapter_version"] = str(adapter_version)
        if error is not None:
            fields["error"] = error.model_dump_json()
        is_moved = self._fenced_write(
            claim.job.id, claim.token, fields, status=status, expected=expected
        )
        if is_moved and status == "succeeded" and claim.job.started_at:
            seconds = (datetime.now(UTC) - claim.job.started_at).total_seconds()
            self._redis.lpush(_DURATIONS, f"{seconds:.3f}")
            self._redis.ltrim(_DURATIONS, 0, _NUM_DURATIONS - 1)
        return is_moved

    def report(self, claim: Claim, progress: Progress, metric: Metric | None = None) -> None:
        """Writes progress, and announces a new point of the curve. Raises LeaseLostError."""
        fields = {"progress": progress.model_dump_json()}
        event = {"progress": progress.model_dump()}
        if metric is not None:
            event |= metric.model_dump(exclude_none=True)
        self._fenced_write(claim.job.id, claim.token, fields, event_type="metrics", event=event)

    def resolve(self, claim: Claim, resolved: JobConfig, warnings: list[str]) -> None:
        """Notes what the device and the base model made of the job's config. Raises LeaseLostError."""
        fields = {"resolved": resolved.model_dump_json(), "warnings": json.dumps(warnings)}
        self._fenced_write(claim.job.id, claim.token, fields)

    def judge(self, claim: Claim, evaluation: Evaluation) -> None:
        """Writes the judgement, and announces it. Raises LeaseLostError."""
        self._fenced_write(
            claim.job.id,
            claim.token,
            {"evaluation": evaluation.model_dump_json()},
            event_type="evaluation",
            event=evaluation.model_dump(mode="json"),
        )

    def _fenced_write(
        self,
        job_id: str,
        token: int,
        fields: dict[str, str],
        *,
        status: str = "",
        expected: Sequence[str] = (),
        event_type: str = "",
        event: dict[str, Any] | None = None,
    ) -> bool:
        answer = self._write(
            keys=_keys(job_id),
            args=[
                job_id,
                token,
                _now(),
                status,
                json.dumps(expected),
                json.dumps(fields),
                event_type,
                json.dumps(event or {}),
            ],
        )
        if answer == "fenced":
            raise LeaseLostError(job_id)
        return bool(answer == "ok")


def _check_id(job_id: str) -> None:
    """`job-1:events` would name another kind of key."""
    if ":" in job_id:
        raise _not_found(job_id)


def _not_found(job_id: str) -> NotFoundError:
    return NotFoundError(f"job {job_id[:80]!r} does not exist", code="job_not_found")


def events_key(job_id: str) -> str:
    """The stream of a job's events: entries with `type` and `data` (JSON)."""
    return f"dragoman:job:{job_id}:events"


def _keys(job_id: str) -> list[str]:
    job = f"dragoman:job:{job_id}"
    return [job, f"{job}:lease", events_key(job_id), _ALL, _OPEN, _QUEUES]


def _now() -> str:
    return datetime.now(UTC).isoformat()
