"""Fine-tuning jobs over HTTP: submit, watch, pause, cancel, delete."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Depends, Header, Query, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile as StarletteUploadFile

from app.checkpoints import list_checkpoints
from app.curve import thin_curve
from app.deps import JobsDep, ServicesDep, VolumeDep
from app.forms import (
    UnsupportedMediaTypeError,
    form_values,
    media_type,
    opened_form,
    parse_json,
    read_json,
    validate,
)
from app.ingestion.ingest import OnError
from app.routes import curve
from app.routes.datasets import ingest_upload
from app.schemas import Cancellation, JobOut, JobRequest, RequestBody, Text
from app.services import Services
from core.adapters import check_adapter_name
from core.errors import InvalidError, NotFoundError
from core.job_store import JobStore, events_key
from core.jobs import ENDED, Job, JobStatus, LossCurve, Priority
from core.metrics import read_curve
from core.target_modules import match_target_modules
from core.training_config import JobConfig
from core.volume import Volume

router = APIRouter(prefix="/jobs", tags=["jobs"])
router.include_router(curve.router)

_MAX_LISTED_POINTS = 100
_EVENTS_WAIT_MS = 1_000  # a stream sees within this time that the server stops


class _JobForm(RequestBody):
    """The text parts of a multipart job; `file` is taken out before."""

    adapter: Text
    priority: Priority = Priority.NORMAL
    config: JobConfig = JobConfig()
    mapping: Text | None = None
    name: Text | None = None
    on_error: OnError = "fail"
    encoding: Text | None = Field(None, max_length=40)


_CANCEL_BODY = {"schema": {"$ref": "#/components/schemas/Cancellation"}}
_JSON_BODY = {"schema": {"$ref": "#/components/schemas/JobRequest"}}
_FORM_BODY = {
    "schema": {
        "type": "object",
        "required": ["file", "adapter"],
        "properties": {
            "file": {
                "type": "string",
                "format": "binary",
                "description": "CSV, TSV, JSONL, JSON, TMX or Parquet",
            },
            "adapter": {"type": "string"},
            "priority": {"enum": [p.value for p in Priority]},
            "config": {
                "type": "string",
                "description": "JSON: the same as `config` of a JSON request",
            },
            "mapping": {"type": "string", "description": 'JSON: {"source": …, "target": …}'},
            "on_error": {"enum": ["fail", "skip"]},
            "encoding": {"type": "string", "description": "of a text that is not UTF-8: gb18030"},
        },
    }
}


@router.post(
    "",
    status_code=202,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": _JSON_BODY, "multipart/form-data": _FORM_BODY},
        }
    },
)
async def create_job(
    request: Request,
    response: Response,
    services: ServicesDep,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> JobOut:
    """Fine-tune an adapter on a dataset (JSON with `dataset_id`), or on a file sent along (multipart)."""
    kind = media_type(request)
    if kind == "multipart/form-data":
        wanted = await _read_form(request, services)
    elif kind == "application/json":
        wanted = validate(JobRequest, await read_json(request))
    else:
        raise UnsupportedMediaTypeError(
            f"content-type {kind[:80]!r} is not accepted; send application/json with a dataset_id, "
            "or multipart/form-data with a file"
        )
    job = await run_in_threadpool(submit_job, services, wanted, idempotency_key or "")
    response.headers["Location"] = f"{router.prefix}/{job.id}"
    return await run_in_threadpool(_show, job, services.jobs, services.volume)


@router.get("")
def list_jobs(
    request: Request,
    response: Response,
    jobs: JobsDep,
    volume: VolumeDep,
    status: JobStatus | None = None,
    adapter: Annotated[str | None, Query(max_length=63)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=80)] = None,
) -> list[JobOut]:
    """Jobs, newest first. `after` is the last id of the page before; a `Link` header leads to the next page.

    Curves are thinned to 100 points a line; `GET /jobs/{id}` has them whole.
    """
    found = jobs.find(status=status, adapter=adapter, limit=limit + 1, after=after)
    if len(found) > limit:
        following = request.url.include_query_params(after=found[limit - 1].id)
        response.headers["Link"] = f'<{following}>; rel="next"'
    places = jobs.places()
    return [
        JobOut.of(
            job,
            _curve(job, volume, max_points=_MAX_LISTED_POINTS),
            list_checkpoints(volume, job.id),
            places.get(job.id),
        )
        for job in found[:limit]
    ]


@router.get("/{job_id}")
def get_job(
    job_id: str,
    jobs: JobsDep,
    volume: VolumeDep,
    after_step: Annotated[int, Query(ge=-1)] = -1,
    max_points: Annotated[int | None, Query(ge=2, le=1_000_000)] = None,
) -> JobOut:
    """One job with its loss curve. `after_step` returns only newer points, `max_points` the ends and the extremes.

    Where `attempt` or `progress.restarts` has changed, the run began anew, or went on from a checkpoint: points after
    `progress.step` no longer count.
    """
    return _show(jobs.get(job_id), jobs, volume, after_step, max_points)


@router.post(
    "/{job_id}/cancel",
    openapi_extra={"requestBody": {"content": {"application/json": _CANCEL_BODY}}},
)
async def cancel_job(
    request: Request,
    job_id: str,
    services: ServicesDep,
    publish: Annotated[
        bool, Query(description="judge and publish what was learnt so far; also in a JSON body")
    ] = False,
) -> JobOut:
    """Cancel a job: at once if it waits, after the next step if it runs. Nothing is published unless asked."""
    if media_type(request) == "application/json" and await request.body():
        publish = validate(Cancellation, await read_json(request)).publish or publish
    return await run_in_threadpool(_cancel, services, job_id, publish)


@router.post("/{job_id}/pause")
def pause_job(job_id: str, jobs: JobsDep, volume: VolumeDep) -> JobOut:
    """Pause a job: out of the queue at once, or after the next step; it keeps what it has learnt, and frees the device."""
    return _show(jobs.pause(job_id), jobs, volume)


@router.post("/{job_id}/resume")
def resume_job(job_id: str, services: ServicesDep) -> JobOut:
    """Go on with a paused job. In the queue it has the place of its age."""
    job = services.jobs.resume(job_id)
    services.send(job.id)
    return _show(job, services.jobs, services.volume)


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: str, jobs: JobsDep, volume: VolumeDep) -> None:
    """Remove a job that has ended: its record, events, curve and log. The version that it published stays."""
    job = jobs.get(job_id)
    if job.status in ENDED:
        # First, so that a failure leaves something that can be deleted again.
        volume.remove_job(job.id)
    jobs.delete(job_id)


@router.get("/{job_id}/log", response_class=PlainTextResponse)
def get_log(job_id: str, jobs: JobsDep, volume: VolumeDep) -> str:
    """What the worker logged in the newest attempt; at most the last 256 KiB."""
    job = jobs.get(job_id)
    path = volume.attempt(job.id, job.attempt) / "log.txt"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 256 * 1024))
        return file.read().decode("utf-8", "replace")


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
        job = await run_in_threadpool(services.jobs.get, job_id)
    except NotFoundError:
        return True
    return job.status in ENDED


async def _read_form(request: Request, services: Services) -> JobRequest:
    """Stores the file as a dataset, and only once everything else in the form is sound."""
    async with opened_form(request, max_fields=20) as form:
        values = form_values(form)
        file = values.pop("file", None)
        if not isinstance(file, StarletteUploadFile):
            raise InvalidError(
                "the form has no `file`; send a CSV, TSV, JSONL, JSON, TMX or Parquet file",
                code="file_missing",
            )
        if isinstance(values.get("config"), str):
            values["config"] = parse_json(values["config"], "config")
        wanted = validate(_JobForm, values)
        await run_in_threadpool(_check, services, wanted.adapter, wanted.config)
        dataset = await run_in_threadpool(
            ingest_upload,
            UploadFile(file.file, size=file.size, filename=file.filename),
            mapping=wanted.mapping,
            name=wanted.name,
            on_error=wanted.on_error,
            encoding=wanted.encoding,
            store=services.datasets,
            volume=services.volume,
            settings=services.settings,
            count_tokens=services.require_serving().count_tokens,
        )
    return JobRequest(
        dataset_id=dataset.id,
        adapter=wanted.adapter,
        priority=wanted.priority,
        config=wanted.config,
    )


def submit_job(
    services: Services,
    wanted: JobRequest,
    idempotency_key: str = "",
    metadata: dict[str, str] | None = None,
) -> Job:
    """Record first, then the message: a job can be late, but not lost.

    Raises NotFoundError `dataset_not_found`, UnavailableError `queue_full`, and InvalidError where the base model
    cannot take the config.
    """
    _check(services, wanted.adapter, wanted.config)
    dataset = services.datasets.get(wanted.dataset_id)
    hidden_size = services.require_serving().engine.hidden_size
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


def _check(services: Services, adapter: str, config: JobConfig) -> None:
    """What can be refused before anything is stored."""
    check_adapter_name(adapter)
    engine = services.require_serving().engine
    targets = config.lora.target_modules
    if not isinstance(targets, str):
        match_target_modules(targets, engine.target_modules)
    if config.lora.r > services.settings.lora_width:
        raise InvalidError(
            f"lora.r is {config.lora.r}; this server serves ranks up to {services.settings.lora_width} "
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


def _cancel(services: Services, job_id: str, publish: bool) -> JobOut:
    job = services.jobs.cancel(job_id, publish=publish)
    if job.status == JobStatus.QUEUED:
        services.send(job.id)  # a worker has to publish what it has learnt
    elif job.status in ENDED:
        services.volume.remove_checkpoints(job.id)
    return _show(job, services.jobs, services.volume)


def _show(
    job: Job,
    jobs: JobStore,
    volume: Volume,
    after_step: int = -1,
    max_points: int | None = None,
) -> JobOut:
    place = jobs.places().get(job.id) if job.status == JobStatus.QUEUED else None
    curve = _curve(job, volume, after_step, max_points)
    return JobOut.of(job, curve, list_checkpoints(volume, job.id), place)


def _curve(
    job: Job, volume: Volume, after_step: int = -1, max_points: int | None = None
) -> LossCurve:
    loss_curve = read_curve(volume.attempt(job.id, job.attempt), after_step)
    if max_points is not None:
        return thin_curve(loss_curve, max_points)
    return loss_curve
