"""A job's stream of events, in OpenAI's words, newest first."""

import json
import re
from typing import Any

from redis import Redis

from app.routes.openai.shapes import FineTuningEvent
from core.errors import InvalidError
from core.job_store import events_key
from core.jobs import Job, JobStatus

_ID = re.compile(r"ftevent-([0-9]{1,19}-[0-9]{1,19})")
_BATCH = 100


def read_events(redis: Redis, job: Job, limit: int, after: str | None) -> list[FineTuningEvent]:
    """At most `limit` events that are older than the one with the id `after`. Raises InvalidError `after_invalid`."""
    end = "+"
    if after is not None:
        known = _ID.fullmatch(after)
        if known is None:
            raise InvalidError(
                f"after is {after[:80]!r}; the id of an event, as listed, is accepted",
                code="after_invalid",
            )
        end = f"({known[1]}"
    events: list[FineTuningEvent] = []
    while len(events) < limit:
        entries: Any = redis.xrevrange(events_key(job.id), end, "-", _BATCH)
        for entry_id, fields in entries:
            event = _event(entry_id, fields["type"], json.loads(fields["data"]), job)
            if event is not None:
                events.append(event)
            end = f"({entry_id}"
        if len(entries) < _BATCH:
            break
    return events[:limit]


def _event(entry_id: str, kind: str, data: dict[str, Any], job: Job) -> FineTuningEvent | None:
    event = FineTuningEvent(
        id=f"ftevent-{entry_id}", created_at=int(entry_id.partition("-")[0]) // 1000, message=""
    )
    if kind == "status":
        event.message = f"The job is {data['status']}"
        if data["status"] == JobStatus.FAILED:
            event.level = "error"
            event.message += f": {job.error.message}" if job.error else ""
    elif kind == "metrics" and (data.get("train") or data.get("eval")):
        _tell_metrics(event, data)
    elif kind == "evaluation":
        event.message, event.data = f"Evaluated: {data['reason']}", data
    else:
        return None  # `done` repeats the last status; progress alone is no event
    return event


def _tell_metrics(event: FineTuningEvent, data: dict[str, Any]) -> None:
    train, evaluated = data.get("train") or {}, data.get("eval") or {}
    step = (train or evaluated)["step"]
    total = data.get("progress", {}).get("total_steps")
    losses = {"training loss": train.get("loss"), "full validation loss": evaluated.get("loss")}
    told = ", ".join(f"{name}={loss:.2f}" for name, loss in losses.items() if loss is not None)
    event.type = "metrics"
    event.message = f"Step {step}/{total}: {told}" if total else f"Step {step}: {told}"
    event.data = {
        "step": step,
        "total_steps": total,
        "train_loss": train.get("loss"),
        "full_valid_loss": evaluated.get("loss"),
    }
