"""Places in the queue, and when they may be expected to start."""

from datetime import UTC, datetime, timedelta

from core.job_forecast import forecast
from core.jobs import Job, JobStatus, Progress
from core.training_config import JobConfig

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def running(eta_seconds: float | None, age_s: float = 0) -> Job:
    return Job(
        id="r",
        adapter="yoda",
        dataset_id="d",
        config=JobConfig(),
        status=JobStatus.RUNNING,
        created_at=NOW,
        started_at=NOW - timedelta(seconds=age_s),
        progress=Progress(eta_seconds=eta_seconds),
    )


def starts_s(queued: list[str], jobs: list[Job], durations_s: list[float]) -> list[float | None]:
    places = forecast(queued, jobs, durations_s, now=NOW)
    assert [places[j].position for j in queued] == list(range(1, len(queued) + 1))
    starts = [places[j].expected_start for j in queued]
    return [None if s is None else (s - NOW).total_seconds() for s in starts]


def test_one_worker() -> None:
    assert starts_s(["a", "b", "c"], [running(30)], [100, 200]) == [30, 180, 330]


def test_two_workers() -> None:
    assert starts_s(["a", "b", "c"], [running(30), running(40)], [100]) == [30, 40, 130]


def test_idle() -> None:
    assert starts_s(["a", "b"], [], [60]) == [0, 60]


def test_no_job_has_finished_yet() -> None:
    assert starts_s(["a", "b"], [running(30)], []) == [30, None]
    assert starts_s(["a"], [running(None)], []) == [None]


def test_without_an_estimate_a_job_takes_as_long_as_others() -> None:
    assert starts_s(["a"], [running(None, age_s=40)], [100]) == [60]
    assert starts_s(["a"], [running(None, age_s=400)], [100]) == [0]
