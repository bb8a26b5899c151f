"""Fine-tuning jobs over HTTP: submit, watch, pause, cancel, delete."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile as StarletteUploadFile

from app import job_control
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
from app.routes.datasets import UploadOptions, ingest_upload
from app.schemas import Cancellation, JobOut, JobRequest, Text
from app.services import Services
from core.errors import InvalidError
from core.job_store import JobStore
from core.jobs import ENDED, Job, JobStatus, LossCurve, Priority
from core.metrics import read_curve
from core.training_config import JobConfig
from core.volume import Volume

router = APIRouter(prefix="/jobs", tags=["jobs"])

_MAX_LISTED_POINTS = 100


class _JobForm(UploadOptions):
    """The text parts of a multipart job; `file` is taken out before."""

    adapter: Text
    priority: Priority = Priority.NORMAL
    config: JobConfig = JobConfig()


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
            "name": {"type": "string", "description": "the dataset's; empty: the file's name"},
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
        job = await _submit_form(request, services, idempotency_key or "")
    elif kind == "application/json":
        wanted = validate(JobRequest, await read_json(request))
        job = await run_in_threadpool(
            job_control.submit_job, services, wanted, idempotency_key or ""
        )
    else:
        raise UnsupportedMediaTypeError(
            f"content-type {kind[:80]!r} is not accepted; send application/json with a dataset_id, "
            "or multipart/form-data with a file"
        )
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
    places, devices = jobs.places(), jobs.presence.working_devices()
    return [
        JobOut.of(
            _with_hint(job, devices),
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
    job = await run_in_threadpool(job_control.cancel_job, services, job_id, publish=publish)
    return await run_in_threadpool(_show, job, services.jobs, services.volume)


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
    if jobs.status(job_id) in ENDED:
        # First, so that a failure leaves something that can be deleted again.
        volume.remove_job(job_id)
    jobs.delete(job_id)


@router.get("/{job_id}/log", response_class=PlainTextResponse)
def get_log(job_id: str, jobs: JobsDep, volume: VolumeDep) -> str:
    """What the worker logged in the newest attempt; at most the last 256 KiB."""
    job = jobs.get(job_id)
    path = volume.newest_attempt(job.id) / "log.txt"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 256 * 1024))
        return file.read().decode("utf-8", "replace")


async def _submit_form(request: Request, services: Services, idempotency_key: str) -> Job:
    """Stores the file as a dataset, and only once everything else in the form is sound; a retry stores nothing."""
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
        await run_in_threadpool(job_control.check_config, services, wanted.adapter, wanted.config)
        if known := await run_in_threadpool(services.jobs.find_by_key, idempotency_key):
            return known
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
    job = JobRequest(
        dataset_id=dataset.id,
        adapter=wanted.adapter,
        priority=wanted.priority,
        config=wanted.config,
    )
    return await run_in_threadpool(job_control.submit_job, services, job, idempotency_key)


def _show(
    job: Job,
    jobs: JobStore,
    volume: Volume,
    after_step: int = -1,
    max_points: int | None = None,
) -> JobOut:
    place = None
    curve = _curve(job, volume, after_step, max_points)
    if job.status == JobStatus.QUEUED:
        place = jobs.places().get(job.id)
        job = _with_hint(job, jobs.presence.working_devices())
    return JobOut.of(job, curve, list_checkpoints(volume, job.id), place)


def _with_hint(job: Job, devices: list[str]) -> Job:
    hint = job_control.lacks_worker(job, devices)
    return job.model_copy(update={"warnings": [*job.warnings, hint]}) if hint else job


def _curve(
    job: Job, volume: Volume, after_step: int = -1, max_points: int | None = None
) -> LossCurve:
    loss_curve = read_curve(volume.newest_attempt(job.id), after_step)
    if max_points is not None:
        return thin_curve(loss_curve, max_points)
    return loss_curve
