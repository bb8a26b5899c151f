"""A job's loss curve as a picture, cheap to poll: GET /jobs/{id}/curve.svg."""

import hashlib
from functools import partial
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from app.curve import Theme, draw_curve
from app.deps import JobsDep, VolumeDep
from core import __version__
from core.jobs import Job
from core.metrics import curve_version, read_curve

router = APIRouter(prefix="/jobs", tags=["jobs"])

# Drawings wait for each other in a thread of their own; the pool that answers everything else stays free.
_drawing_thread = anyio.CapacityLimiter(1)


class SvgResponse(Response):
    media_type = "image/svg+xml"


@router.get(
    "/{job_id}/curve.svg",
    response_class=SvgResponse,
    responses={304: {"description": "`If-None-Match` names this picture"}},
)
async def get_curve(
    job_id: str,
    jobs: JobsDep,
    volume: VolumeDep,
    width: Annotated[int, Query(ge=480, le=2400, description="CSS pixels")] = 960,
    height: Annotated[int, Query(ge=320, le=1600, description="CSS pixels")] = 540,
    theme: Annotated[
        Theme, Query(description="`auto` has no background, and is readable on light and on dark")
    ] = "auto",
    log: Annotated[bool, Query(description="logarithmic losses")] = False,
    if_none_match: Annotated[str, Header(max_length=4096)] = "",
) -> Response:
    """The loss curve so far as SVG, for a README or a browser; with an `ETag`, so that asking again is cheap."""
    job = await run_in_threadpool(jobs.get, job_id)
    attempt = volume.newest_attempt(job.id)
    title, subtitle = _describe(job)
    picture = partial(
        draw_curve,
        title=title,
        subtitle=subtitle,
        width=width,
        height=height,
        theme=theme,
        log=log,
    )
    drawn_from = (__version__, await run_in_threadpool(curve_version, attempt), picture.keywords)
    etag = f'"{hashlib.sha256(repr(drawn_from).encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if etag in if_none_match or if_none_match == "*":
        return Response(status_code=304, headers=headers)
    svg = await anyio.to_thread.run_sync(
        lambda: picture(read_curve(attempt)), limiter=_drawing_thread
    )
    return SvgResponse(svg, headers=headers)


def _describe(job: Job) -> tuple[str, str]:
    """Title and subtitle."""
    title = job.adapter if job.adapter_version is None else f"{job.adapter}@{job.adapter_version}"
    progress = job.progress
    parts = [job.id, job.status.value]
    if progress.total_steps is not None:
        parts.append(f"step {progress.step:,} of {progress.total_steps:,}")
    if job.attempt > 1:
        parts.append(f"attempt {job.attempt}")
    return title, " · ".join(parts)
