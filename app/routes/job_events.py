"""A job's events as they happen: GET /jobs/{id}/events."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from app.deps import JobsDep, ServicesDep
from app.services import Services
from core.errors import NotFoundError
from core.job_store import events_key
from core.jobs import ENDED, Job

router = APIRouter(prefix="/jobs", tags=["jobs"])

_EVENTS_WAIT_MS = 1_000  # a stream sees within this time that the server stops


async def _existing_job(job_id: str, jobs: JobsDep) -> Job:
    """A dependency, since a stream that has begun can no longer answer 404."""
    return await run_in_threadpool(jobs.get, job_id)


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def stream_events(
    job: Annotated[Job, Depends(_existing_job)],
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,19}-\d{1,19}$")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """`status`, `metrics`, `evaluation` and `done` events from the beginning, or after `Last-Event-ID`; then as they happen.

    `metrics` holds `progress`, and a point of the curve as `train` or `eval`; or `restart_after_step`, as each run's
    first one does: points of later steps no longer count. The newest 20,000 events are kept.
    """
    async for event in _events(services, job.id, last_event_id or "0-0"):
        yield event


async def _events(services: Services, job_id: str, last_id: str) -> AsyncIterator[ServerSentEvent]:
    key = events_key(job_id)
    has_ended = False
    while not services.stopping.is_set():
        try:
            wait_ms = None if has_ended else _EVENTS_WAIT_MS
            entries = _entries(await services.async_redis.xread({key: last_id}, block=wait_ms))
            if not entries and has_ended:
                return  # the client has seen `done` before
            # Read once more after that: `done` may have come in between.
            has_ended = not entries and await _has_ended(services, job_id)
        except (redis.ConnectionError, redis.TimeoutError):
            await asyncio.sleep(1)  # Redis restarts; the stream is still there after
            continue
        for last_id, fields in entries:
            yield ServerSentEvent(event=fields["type"], data=json.loads(fields["data"]), id=last_id)
            if fields["type"] == "done":
                return


def _entries(answer: Any) -> list[tuple[str, dict[str, str]]]:
    """XREAD's answer: a dict under RESP3, a list of pairs under RESP2; each entry list may be wrapped once more."""
    streams = answer.values() if isinstance(answer, dict) else [s[1] for s in answer or []]
    entries: list[tuple[str, dict[str, str]]] = []
    for stream in streams:
        for entry in stream:
            entries += (
                entry
                if isinstance(entry, list) and isinstance(entry[0], (list, tuple))
                else [entry]
            )
    return entries


async def _has_ended(services: Services, job_id: str) -> bool:
    try:
        status = await run_in_threadpool(services.jobs.status, job_id)
    except NotFoundError:
        return True
    return status in ENDED
