"""Fine-tuning jobs: submit, watch, steer."""

import asyncio
import builtins
import json
import secrets
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, Literal

import httpx
from httpx_sse import EventSource

from dragoman.calls import Call, Upload, path, read_nothing, read_text, reads
from dragoman.datasets import OnError, upload_form
from dragoman.endpoint import AsyncResource, Resource, endpoint
from dragoman.errors import (
    ConnectionFailedError,
    JobFailedError,
    TimedOutError,
    UnavailableError,
)
from dragoman.events import EventCursor, JobEvent
from dragoman.models import Job
from dragoman.progress import watcher
from dragoman.transport import UPLOAD_TIMEOUT

_JOBS = builtins.list[Job]
Priority = Literal["low", "normal", "high"]
_LOST = (ConnectionFailedError, TimedOutError, UnavailableError)
_RECONNECT_S = 300.0


class JobEndpoints:
    @endpoint
    def create(
        self,
        adapter: str,
        *,
        file: str | Path | bytes | None = None,
        dataset_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        filename: str | None = None,
        mapping: Mapping[str, str] | None = None,
        on_error: OnError = "fail",
        encoding: str | None = None,
        priority: Priority | None = None,
        idempotency_key: str | None = None,
    ) -> Call[Job]:
        """Submits a job that trains the next version of `adapter` on a `file` or on the dataset `dataset_id`.

        `config` is that of POST /jobs: `{"preset": "fast", "training": {"num_train_epochs": 5}}`. Jobs of a higher
        `priority` start first; normal, if not given. Each call has an idempotency key of its own unless one is
        given, so that its retries make one job.
        Raises InvalidError, which names what is wrong in the file or the config; UnavailableError `queue_full`.
        """
        if (file is None) == (dataset_id is None):
            raise TypeError("a job needs either `file` or `dataset_id`")
        headers = {"Idempotency-Key": idempotency_key or secrets.token_urlsafe(16)}
        wanted = {"adapter": adapter} | ({"priority": priority} if priority else {})
        if file is None:
            body = {**wanted, "dataset_id": dataset_id, "config": dict(config or {})}
            return Call("POST", "/jobs", reads(Job), json=body, headers=headers)
        form = upload_form(None, mapping, on_error, encoding)
        form |= wanted | {"config": json.dumps(config or {})}
        upload = Upload.of(file, filename)
        return Call(
            "POST",
            "/jobs",
            reads(Job),
            form=form,
            upload=upload,
            headers=headers,
            timeout=UPLOAD_TIMEOUT,
        )

    @endpoint
    def get(self, job_id: str, *, after_step: int | None = None) -> Call[Job]:
        """One, with its loss curve so far, or its points after `after_step` alone. Raises NotFoundError."""
        params = {"after_step": after_step}
        return Call("GET", path("jobs", job_id), reads(Job), params=params)

    @endpoint
    def list(
        self,
        *,
        status: str | None = None,
        adapter: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Call[_JOBS]:
        """Newest first; `after`: the last id of the page before."""
        params = {"status": status, "adapter": adapter, "limit": limit, "after": after}
        return Call("GET", "/jobs", reads(_JOBS), params=params)

    @endpoint
    def cancel(self, job_id: str, *, publish: bool = False) -> Call[Job]:
        """Stops a job at its next step; `publish`: what it has learnt is judged and published all the same.

        Raises ConflictError once it has ended.
        """
        return self._order(job_id, "cancel", publish=publish)

    @endpoint
    def pause(self, job_id: str) -> Call[Job]:
        """Frees the device after a checkpoint. Raises ConflictError unless it waits or runs."""
        return self._order(job_id, "pause")

    @endpoint
    def resume(self, job_id: str) -> Call[Job]:
        """Goes on where it was paused. Raises ConflictError unless it is paused."""
        return self._order(job_id, "resume")

    @endpoint
    def log(self, job_id: str) -> Call[str]:
        """What the worker has logged, the newest 256 KiB."""
        return Call("GET", path("jobs", job_id, "log"), read_text)

    @endpoint
    def curve_svg(self, job_id: str) -> Call[str]:
        """The loss curve as a picture."""
        return Call("GET", path("jobs", job_id, "curve.svg"), read_text)

    @endpoint
    def delete(self, job_id: str) -> Call[None]:
        """Removes the record of a job that has ended; its adapter version stays."""
        return Call("DELETE", path("jobs", job_id), read_nothing)

    def _order(self, job_id: str, verb: str, *, publish: bool = False) -> Call[Job]:
        # Not sent twice: the second would be refused because of the first.
        params = {"publish": publish or None}
        return Call("POST", path("jobs", job_id, verb), reads(Job), params=params, idempotent=False)


class Jobs(JobEndpoints, Resource):
    def _received(self, answer: Any) -> Any:
        for job in answer if isinstance(answer, builtins.list) else [answer]:
            if isinstance(job, Job):
                job._wait = self.wait
        return answer

    def events(
        self,
        job_id: str,
        *,
        last_event_id: str | None = None,
        reconnect_s: float = _RECONNECT_S,
        timeout_s: float | None = None,
    ) -> Generator[JobEvent]:
        """All events of a job, from its beginning or after `last_event_id`, until `done`, as they happen.

        A connection that breaks is made again, and nothing is missed; a server that is away for longer than
        `reconnect_s` is an error. Raises NotFoundError; TimedOutError after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        cursor = EventCursor(job_id, last_event_id, reconnect_s)
        while not cursor.finished:
            try:
                with self._transport.stream(cursor.call()) as response:
                    for sse in EventSource(_Watched(response, deadline)).iter_sse():  # type: ignore[arg-type]
                        if event := cursor.take(sse):
                            yield event
                if not cursor.finished and (event := cursor.settle(self.get(job_id))):
                    yield event
                pause_s = cursor.pause_s()
            except _LOST as error:
                pause_s = cursor.pause_s(error)
            if not cursor.finished:
                _check_deadline(deadline)
                time.sleep(pause_s)

    def wait(
        self, job: Job | str, *, progress: bool = False, timeout_s: float | None = None
    ) -> Job:
        """Returns the job once it has succeeded or was cancelled. Survives restarts of the server.

        `progress` shows a bar with the loss on stderr. Raises JobFailedError if it failed; TimedOutError after
        `timeout_s`, at most 15 s late.
        """
        job_id = job if isinstance(job, str) else job.id
        with watcher(progress) as show, closing(self.events(job_id, timeout_s=timeout_s)) as events:
            for event in events:
                show(event)
        return check_success(self.get(job_id))


class AsyncJobs(JobEndpoints, AsyncResource):
    async def events(
        self,
        job_id: str,
        *,
        last_event_id: str | None = None,
        reconnect_s: float = _RECONNECT_S,
    ) -> AsyncGenerator[JobEvent]:
        """All events of a job, from its beginning or after `last_event_id`, until `done`, as they happen.

        A connection that breaks is made again, and nothing is missed; a server that is away for longer than
        `reconnect_s` is an error. Raises NotFoundError.
        """
        cursor = EventCursor(job_id, last_event_id, reconnect_s)
        while not cursor.finished:
            try:
                async with self._transport.stream(cursor.call()) as response:
                    async for sse in EventSource(response).aiter_sse():
                        if event := cursor.take(sse):
                            yield event
                if not cursor.finished and (event := cursor.settle(await self.get(job_id))):
                    yield event
                pause_s = cursor.pause_s()
            except _LOST as error:
                pause_s = cursor.pause_s(error)
            if not cursor.finished:
                await asyncio.sleep(pause_s)

    async def wait(
        self, job: Job | str, *, progress: bool = False, timeout_s: float | None = None
    ) -> Job:
        """Returns the job once it has succeeded or was cancelled. Survives restarts of the server.

        `progress` shows a bar with the loss on stderr. Raises JobFailedError if it failed; TimedOutError after
        `timeout_s`.
        """
        job_id = job if isinstance(job, str) else job.id
        try:
            async with asyncio.timeout(timeout_s):
                with watcher(progress) as show:
                    async with aclosing(self.events(job_id)) as events:
                        async for event in events:
                            show(event)
                return check_success(await self.get(job_id))
        except TimeoutError as error:
            raise TimedOutError(f"job {job_id} has not ended in {timeout_s} s") from error


def check_success(job: Job) -> Job:
    """Raises JobFailedError."""
    if job.status == "failed":
        raise JobFailedError(job)
    return job


class _Watched:
    """A response that is given up at a deadline; its stream is never silent for longer than a heartbeat."""

    def __init__(self, response: httpx.Response, deadline: float | None) -> None:
        self.headers = response.headers
        self._response = response
        self._deadline = deadline

    def iter_text(self) -> Iterator[str]:
        for text in self._response.iter_text():
            _check_deadline(self._deadline)
            yield text


def _check_deadline(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise TimedOutError("the job has not ended in the time given")
