"""When queued jobs may be expected to start: from the time left of running ones and how long past ones took."""

import heapq
from collections.abc import Sequence
from datetime import datetime, timedelta

from core.jobs import Job, Place


def forecast(
    queued: Sequence[str], running: Sequence[Job], durations_s: Sequence[float], *, now: datetime
) -> dict[str, Place]:
    """`queued` are ids, next first; each worker that runs a job now is taken to go on with the next.

    Nothing is expected of a job before which one stands that nothing is known of.
    """
    mean_s = sum(durations_s) / len(durations_s) if durations_s else None
    free_s = [_left_s(job, mean_s, now) for job in running] or [0.0]
    heapq.heapify(free_s)
    places: dict[str, Place] = {}
    for position, job_id in enumerate(queued, start=1):
        start_s = heapq.heappop(free_s)
        heapq.heappush(free_s, float("inf") if mean_s is None else start_s + mean_s)
        is_known = start_s < float("inf")
        expected = now + timedelta(seconds=start_s) if is_known else None
        places[job_id] = Place(position=position, expected_start=expected)
    return places


def _left_s(job: Job, mean_s: float | None, now: datetime) -> float:
    if job.progress.eta_seconds is not None:
        return job.progress.eta_seconds
    if mean_s is None or job.started_at is None:
        return float("inf")
    return max(0.0, mean_s - (now - job.started_at).total_seconds())
