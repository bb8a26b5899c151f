"""A job's live events, over as many connections as it takes: what was seen, and when to connect again."""

import time
from dataclasses import dataclass
from typing import Any

from httpx_sse import ServerSentEvent

from dragoman.calls import Call, path, read_nothing, reads_event
from dragoman.errors import DragomanError
from dragoman.models import Job
from dragoman.retries import backoff_s
from dragoman.transport import STREAM_TIMEOUT

_read_data = reads_event(dict[str, Any])


@dataclass(frozen=True)
class JobEvent:
    """`kind`: status, metrics, evaluation, done, or what a newer server adds; `id` is for `last_event_id`."""

    kind: str
    data: dict[str, Any]
    id: str | None = None


class EventCursor:
    """How far a stream of events was read. Knows no network: the clients ask it what to do.

    `reconnect_s`: how long a server may be away before its absence is an error.
    """

    def __init__(self, job_id: str, last_event_id: str | None, reconnect_s: float) -> None:
        self.finished = False
        self._job_id = job_id
        self._last_id = last_event_id
        self._reconnect_s = reconnect_s
        self._failures = 0
        self._away_since: float | None = None

    def call(self) -> Call[None]:
        """The request that goes on where the last connection ended."""
        headers = {"Accept": "text/event-stream"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        return Call(
            "GET",
            path("jobs", self._job_id, "events"),
            read_nothing,
            headers=headers,
            timeout=STREAM_TIMEOUT,
        )

    def take(self, event: ServerSentEvent) -> JobEvent | None:
        """None: nothing to tell. Raises UnexpectedAnswerError."""
        self._failures, self._away_since = 0, None
        self._last_id = event.id or self._last_id
        if not event.data:
            return None
        data = _read_data(event)
        self.finished = event.event == "done"
        return JobEvent(event.event, data, event.id or None)

    def settle(self, job: Job) -> JobEvent | None:
        """For a stream that ended without `done`: the last event, should the job have ended. None: connect again."""
        if not job.ended:
            return None
        self.finished = True
        return JobEvent("done", {"status": job.status})

    def pause_s(self, error: DragomanError | None = None) -> float:
        """Seconds to wait before connecting again. Raises `error` if the server was away for too long."""
        now = time.monotonic()
        if error is None:
            return backoff_s(0)
        self._away_since = self._away_since or now
        if now - self._away_since > self._reconnect_s:
            raise error
        self._failures += 1
        return backoff_s(min(self._failures, 4))
