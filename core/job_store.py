"""Job records in Redis. Every change is one Lua script, so that it happens whole, or not at all, whoever else acts.

Keys: `dragoman:job:{id}` (hash), `…:lease` (fencing token, expires), `…:events` (stream), `dragoman:jobs` (all ids by
creation time), `dragoman:jobs:open` (ids of jobs that have not ended), `dragoman:jobs:queued`.

A worker holds a job by a lease that it must renew. Its fencing token (Kleppmann 2016, "How to do distributed locking")
changes with every claim and every sweep, so a worker that was given up can no longer write.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel
from redis import Redis

from core.errors import ConflictError, NotFoundError, UnavailableError
from core.jobs import CLAIMED, ENDED, Evaluation, Job, JobError, JobStatus, Progress
from core.metrics import Metric
from core.queue import TRAINING_QUEUE
from core.training_config import JobConfig

logger = logging.getLogger(__name__)

_ALL = "dragoman:jobs"
_OPEN = "dragoman:jobs:open"
_QUEUED = "dragoman:jobs:queued"
_RESEND_AFTER_S = 5.0

# Shared by the scripts below. KEYS: job, lease, events, all, open, queued. ARGV[1]: job id.
_PRELUDE = """
local job, lease, events, all, open, queued = unpack(KEYS)
local id = ARGV[1]
local function emit(kind, data)
  redis.call('XADD', events, 'MAXLEN', '~', 20000, '*', 'type', kind, 'data', data)
end
local function set_status(status, now)
  redis.call('HSET', job, 'status', status)
  if status == 'queued' then redis.call('SADD', queued, id) else redis.call('SREM', queued, id) end
  local ended = status == 'succeeded' or status == 'failed' or status == 'cancelled'
  if ended then
    redis.call('HSET', job, 'finished_at', now)
    redis.call('SREM', open, id)
    redis.call('DEL', lease)
  end
  emit('status', cjson.encode({status = status}))
  if ended then emit('done', cjson.encode({status = status})) end
end
local status = redis.call('HGET', job, 'status')
"""

# ARGV: id, fields (JSON object), now, created score, idempotency key, its ttl, max queued
_CREATE = (
    _PRELUDE
    + """
if ARGV[5] ~= '' then
  local known = redis.call('GET', ARGV[5])
  if known then return known end
end
if redis.call('SCARD', queued) >= tonumber(ARGV[7]) then return 'full' end
if ARGV[5] ~= '' then redis.call('SET', ARGV[5], id, 'EX', ARGV[6]) end
for field, value in pairs(cjson.decode(ARGV[2])) do redis.call('HSET', job, field, value) end
redis.call('ZADD', all, ARGV[4], id)
redis.call('SADD', open, id)
set_status('queued', ARGV[3])
return id
"""
)

# ARGV: id, now, lease ms, max attempts -> token, or 0 if there is nothing to claim
_CLAIM = (
    _PRELUDE
    + """
if status ~= 'queued' then return 0 end
local attempt = redis.call('HINCRBY', job, 'attempt', 1)
local token = redis.call('HINCRBY', job, 'fence', 1)
redis.call('SET', lease, token, 'PX', ARGV[3])
redis.call('HSET', job, 'started_at', ARGV[2])
set_status('preparing', ARGV[2])
return token
"""
)

# ARGV: id, token, lease ms -> status, or false if the lease is lost
_RENEW = (
    _PRELUDE
    + """
if redis.call('HGET', job, 'fence') ~= ARGV[2] or not status then return false end
redis.call('SET', lease, ARGV[2], 'PX', ARGV[3])
return status
"""
)

# ARGV: id, token, now, new status or '', expected statuses (JSON), fields (JSON), event type or '', event data
_WRITE = (
    _PRELUDE
    + """
if redis.call('HGET', job, 'fence') ~= ARGV[2] then return 'fenced' end
if ARGV[4] ~= '' then
  if status == ARGV[4] then return 'ok' end  -- done before; only the answer was lost on its way
  local allowed = false
  for _, s in ipairs(cjson.decode(ARGV[5])) do if s == status then allowed = true end end
  if not allowed then return status end
end
for field, value in pairs(cjson.decode(ARGV[6])) do redis.call('HSET', job, field, value) end
if ARGV[7] ~= '' then emit(ARGV[7], ARGV[8]) end
if ARGV[4] ~= '' then set_status(ARGV[4], ARGV[3]) end
return 'ok'
"""
)

# ARGV: id, token, now -> whether it was still held
_RELEASE = (
    _PRELUDE
    + """
if redis.call('HGET', job, 'fence') ~= ARGV[2] or redis.call('DEL', lease) == 0 then return 0 end
redis.call('HINCRBY', job, 'fence', 1)
if status == 'cancelling' then set_status('cancelled', ARGV[3]) return 1 end
redis.call('HINCRBY', job, 'attempt', -1)
redis.call('HDEL', job, 'sent_at', 'started_at', 'progress')
set_status('queued', ARGV[3])
return 1
"""
)

# ARGV: id, now -> the status it had
_CANCEL = (
    _PRELUDE
    + """
if not status then return false end
if status == 'queued' or status == 'paused' then set_status('cancelled', ARGV[2])
elseif status == 'preparing' or status == 'running' or status == 'evaluating' then
  set_status('cancelling', ARGV[2])
end
return status
"""
)

# ARGV: id, now, max attempts, claimed statuses (JSON) -> what became of it, or false
_SWEEP = (
    _PRELUDE
    + """
local claimed = false
for _, s in ipairs(cjson.decode(ARGV[4])) do if s == status then claimed = true end end
if not status then redis.call('SREM', open, id) redis.call('SREM', queued, id) return false end
if not claimed or redis.call('EXISTS', lease) == 1 then return false end
redis.call('HINCRBY', job, 'fence', 1)
if status == 'cancelling' then set_status('cancelled', ARGV[2]) return 'cancelled' end
if tonumber(redis.call('HGET', job, 'attempt')) >= tonumber(ARGV[3]) then
  redis.call('HSET', job, 'error', cjson.encode({code = 'worker_lost', message =
    'the worker died or lost its connection in each of ' .. ARGV[3] .. ' attempts'}))
  set_status('failed', ARGV[2])
  return 'failed'
end
redis.call('HDEL', job, 'sent_at', 'started_at', 'progress')
set_status('queued', ARGV[2])
return 'queued'
"""
)


class LeaseLostError(Exception):
    """This worker no longer holds the job; it must stop and write nothing more."""


class Claim(BaseModel):
    """A worker's hold on a job."""

    job: Job
    token: int


class JobStore:
    """The only writer and reader of job records; used by the server and the worker. Thread-safe."""

    def __init__(self, redis: "Redis", *, lease_s: float, max_attempts: int) -> None:
        self._redis = redis
        self._lease_ms = int(lease_s * 1000)
        self._max_attempts = max_attempts
        self._create = redis.register_script(_CREATE)
        self._claim = redis.register_script(_CLAIM)
        self._renew = redis.register_script(_RENEW)
        self._write = redis.register_script(_WRITE)
        self._release = redis.register_script(_RELEASE)
        self._cancel = redis.register_script(_CANCEL)
        self._sweep = redis.register_script(_SWEEP)

    # What anyone may do

    def create(self, job: Job, *, max_queued: int, idempotency_key: str = "") -> Job:
        """Writes the record of a new job, or returns the one that `idempotency_key` (kept a day) made before.

        Raises UnavailableError `queue_full`.
        """
        fields = {
            "record": job.model_dump_json(
                include={"id", "adapter", "dataset_id", "config", "metadata"}
            ),
            "created_at": job.created_at.isoformat(),
            "warnings": json.dumps(job.warnings),
        }
        key = f"dragoman:idempotency:{idempotency_key}" if idempotency_key else ""
        answer = self._create(
            keys=_keys(job.id),
            args=[
                job.id,
                json.dumps(fields),
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

    def get(self, job_id: str) -> Job:
        """Raises NotFoundError `job_not_found`."""
        _check_id(job_id)
        fields: dict[str, str] = self._redis.hgetall(f"dragoman:job:{job_id}")  # type: ignore[assignment]
        if "record" not in fields:
            raise _not_found(job_id)
        return _parse(fields)

    def find(
        self,
        *,
        status: JobStatus | None = None,
        adapter: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> list[Job]:
        """Newest first; `after` is the id of the last job of the page before."""
        ids: Iterable[str] = self._redis.zrevrange(_ALL, 0, -1)  # type: ignore[assignment]
        found: list[Job] = []
        skipping = after is not None
        for job_id in ids:
            if skipping:
                skipping = job_id != after
                continue
            if len(found) == limit:
                break
            job = self.get(job_id)
            if (status is None or job.status == status) and adapter in (None, job.adapter):
                found.append(job)
        return found

    def count_open(self) -> dict[str, int]:
        """How many jobs are in each status that has not ended."""
        counts: dict[str, int] = {}
        for job_id in self._open_ids():
            status = self._redis.hget(f"dragoman:job:{job_id}", "status")
            if status:
                counts[str(status)] = counts.get(str(status), 0) + 1
        return counts

    def uses_dataset(self, dataset_id: str) -> bool:
        """Whether a job that has not ended trains on it."""
        return any(self.get(i).dataset_id == dataset_id for i in self._open_ids())

    def cancel(self, job_id: str) -> Job:
        """Ends a waiting job at once; a running one becomes `cancelling` until its worker has stopped.

        Raises NotFoundError, or ConflictError if it has ended.
        """
        _check_id(job_id)
        before = self._cancel(keys=_keys(job_id), args=[job_id, _now()])
        job = self.get(job_id)
        if before in ENDED:
            raise ConflictError(
                f"job {job_id} is {before}; only a job that has not ended can be cancelled",
                code="job_ended",
            )
        return job

    def mark_sent(self, job_id: str) -> None:
        """Its message is in the queue."""
        self._redis.hset(f"dragoman:job:{job_id}", "sent_at", _now())

    def sweep(self) -> list[str]:
        """Takes jobs from dead workers; returns the ids that must be sent to the queue (again), oldest first."""
        to_send: dict[str, str] = {}
        for job_id in self._open_ids():
            outcome = self._sweep(
                keys=_keys(job_id),
                args=[job_id, _now(), self._max_attempts, json.dumps(sorted(CLAIMED))],
            )
            if outcome:
                logger.warning("job %s lost its worker and is now %s", job_id, outcome)
            created_at = self._lacks_message(job_id)
            if created_at:
                to_send[job_id] = created_at
        return sorted(to_send, key=lambda i: to_send[i])

    def _lacks_message(self, job_id: str) -> str | None:
        """When the job was created, if it is queued and no message will start it."""
        key = f"dragoman:job:{job_id}"
        fields = self._redis.hmget(key, "status", "sent_at", "created_at")
        status, sent_at, created_at = (str(f) if f else None for f in fields)
        if status != JobStatus.QUEUED or not created_at:
            return None
        # Never sent: its sender died, or Redis refused. Or sent, taken by a worker, and not claimed: that worker
        # died in between; Celery gives such a message back only after its visibility timeout, an hour later.
        age = datetime.now(UTC) - datetime.fromisoformat(sent_at or created_at)
        is_old = age.total_seconds() > _RESEND_AFTER_S
        is_waiting = sent_at is not None and bool(self._redis.exists(TRAINING_QUEUE))
        return created_at if is_old and not is_waiting else None

    def _open_ids(self) -> list[str]:
        return [str(i) for i in self._redis.smembers(_OPEN)]

    # What only the worker that holds a job may do

    def claim(self, job_id: str) -> Claim | None:
        """Takes a queued job, atomically; None if another worker has it or it has ended."""
        token = self._claim(
            keys=_keys(job_id), args=[job_id, _now(), self._lease_ms, self._max_attempts]
        )
        return Claim(job=self.get(job_id), token=token) if token else None

    def renew(self, claim: Claim) -> JobStatus:
        """Prolongs the lease and tells the job's status. Raises LeaseLostError."""
        status = self._renew(
            keys=_keys(claim.job.id), args=[claim.job.id, claim.token, self._lease_ms]
        )
        if not status:
            raise LeaseLostError(claim.job.id)
        return JobStatus(status)

    def release(self, claim: Claim) -> None:
        """Hands the job back as if it had not been claimed: queued, and the attempt does not count.

        A job that is being cancelled becomes `cancelled`. Does nothing if the lease is lost.
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
        """Moves the job on; False if it is being cancelled meanwhile. Raises LeaseLostError."""
        expected = {
            "running": [JobStatus.PREPARING],
            "evaluating": [JobStatus.RUNNING],
            # Once the version is published, a cancel that came too late does not unmake it.
            "succeeded": [JobStatus.RUNNING, JobStatus.EVALUATING, JobStatus.CANCELLING],
            "failed": sorted(CLAIMED),
            "cancelled": [JobStatus.CANCELLING],
        }[status]
        fields: dict[str, str] = {}
        if adapter_version is not None:
            fields["adapter_version"] = str(adapter_version)
        if error is not None:
            fields["error"] = error.model_dump_json()
        return self._fenced_write(claim, fields, status=status, expected=expected)

    def report(
        self,
        claim: Claim,
        progress: Progress,
        metric: Metric | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        """Writes progress, and announces a new point of the curve. Raises LeaseLostError."""
        fields = {"progress": progress.model_dump_json()}
        if warnings is not None:
            fields["warnings"] = json.dumps(warnings)
        event = {"progress": progress.model_dump()}
        if metric is not None:
            event |= metric.model_dump(exclude_none=True)
        self._fenced_write(claim, fields, event_type="metrics", event=event)

    def resolve(self, claim: Claim, resolved: JobConfig, warnings: list[str]) -> None:
        """Notes what the device and the base model made of the job's config. Raises LeaseLostError."""
        self._fenced_write(
            claim, {"resolved": resolved.model_dump_json(), "warnings": json.dumps(warnings)}
        )

    def judge(self, claim: Claim, evaluation: Evaluation) -> None:
        """Writes the judgement, and announces it. Raises LeaseLostError."""
        self._fenced_write(
            claim,
            {"evaluation": evaluation.model_dump_json()},
            event_type="evaluation",
            event=evaluation.model_dump(mode="json"),
        )

    def _fenced_write(
        self,
        claim: Claim,
        fields: dict[str, str],
        *,
        status: str = "",
        expected: Sequence[str] = (),
        event_type: str = "",
        event: dict[str, Any] | None = None,
    ) -> bool:
        answer = self._write(
            keys=_keys(claim.job.id),
            args=[
                claim.job.id,
                claim.token,
                _now(),
                status,
                json.dumps(expected),
                json.dumps(fields),
                event_type,
                json.dumps(event or {}),
            ],
        )
        if answer == "fenced":
            raise LeaseLostError(claim.job.id)
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
    return [job, f"{job}:lease", events_key(job_id), _ALL, _OPEN, _QUEUED]


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _parse(fields: dict[str, str]) -> Job:
    values: dict[str, Any] = json.loads(fields["record"])
    for name in ("progress", "error", "evaluation", "warnings", "resolved"):
        if name in fields:
            values[name] = json.loads(fields[name])
    for name in ("status", "created_at", "started_at", "finished_at", "adapter_version", "attempt"):
        if name in fields:
            values[name] = fields[name]
    return Job.model_validate(values)
