"""A job's loss curve over HTTP: as numbers, whole, in part and thinned; and as a picture."""

import json
import math
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import redis
from fastapi.testclient import TestClient

from core.job_store import Claim, JobStore
from core.jobs import EvalPoint, Job, Progress, TrainPoint
from core.metrics import METRICS_FILE, Metric, append_metric
from core.settings import Settings
from core.training_config import JobConfig
from core.volume import Volume
from tests.app.routes.test_jobs import read_events


@pytest.fixture(autouse=True)
def _clean(app_settings: Settings) -> Iterator[None]:
    yield
    with redis.Redis.from_url(app_settings.redis_url) as connection:
        connection.flushdb()


@pytest.fixture
def store(app_settings: Settings) -> Iterator[JobStore]:
    """The worker's hand on the records."""
    with redis.Redis.from_url(app_settings.redis_url, decode_responses=True) as connection:
        yield JobStore(connection, lease_s=30, max_attempts=3)


@pytest.fixture
def claim(store: JobStore) -> Claim:
    job = Job(
        id=f"job-{secrets.token_hex(8)}",
        adapter="yoda",
        dataset_id="ds-1",
        config=JobConfig(),
        created_at=datetime.now(UTC),
    )
    claim = store.claim(store.create(job, max_queued=3).id)
    assert claim is not None
    return claim


@pytest.fixture
def attempt(app_settings: Settings, claim: Claim) -> Path:
    folder = Volume(app_settings.data_dir).attempt(claim.job.id, claim.job.attempt)
    folder.mkdir(parents=True)
    return folder


def train_metric(step: int, **values: Any) -> Metric:
    return Metric(train=TrainPoint(step=step, epoch=step / 10, loss=3 / step, **values))


def write(attempt: Path, *metrics: Metric) -> None:
    for metric in metrics:
        append_metric(attempt, metric)


def get_curve(client: TestClient, claim: Claim, **params: Any) -> Any:
    response = client.get(f"/jobs/{claim.job.id}", params=params)
    assert response.status_code == 200, response.text
    return response.json()["loss_curve"]


def test_training_and_evaluation_points(client: TestClient, claim: Claim, attempt: Path) -> None:
    write(attempt, train_metric(1), train_metric(2), Metric(eval=EvalPoint(step=2, loss=1.5)))
    write(attempt, train_metric(3))
    curve = get_curve(client, claim)
    assert [p["step"] for p in curve["train"]] == [1, 2, 3]
    assert curve["eval"] == [{"step": 2, "epoch": None, "loss": 1.5}]
    newer = get_curve(client, claim, after_step=2)
    assert ([p["step"] for p in newer["train"]], newer["eval"]) == ([3], [])


def test_a_run_that_began_anew(
    client: TestClient, claim: Claim, attempt: Path, store: JobStore
) -> None:
    write(attempt, *(train_metric(s) for s in range(1, 9)))
    write(attempt, Metric(restart_after_step=0), train_metric(1))
    store.report(claim, Progress(step=1, restarts=1), Metric(restart_after_step=0))
    job = client.get(f"/jobs/{claim.job.id}").json()
    assert [p["step"] for p in job["loss_curve"]["train"]] == [1]
    assert job["progress"]["restarts"] == 1
    store.cancel(claim.job.id)
    store.move(claim, "cancelled")
    events = read_events(client.get(f"/jobs/{claim.job.id}/events").text)
    assert [e["data"]["restart_after_step"] for e in events if e["event"] == "metrics"] == [0]


def test_numbers_that_json_lacks(
    client: TestClient, claim: Claim, attempt: Path, store: JobStore
) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    metric = train_metric(1, grad_norm=math.inf, learning_rate=math.nan)
    write(attempt, metric)
    # As a worker of another version might write it.
    with (attempt / METRICS_FILE).open("a") as file:
        file.write('{"train":{"step":2,"epoch":1,"loss":1,"grad_norm":Infinity}}\n')
        file.write('{"train":{"step":3,"epoch":1,"loss":NaN}}\n')
    store.report(claim, Progress(step=1, eta_seconds=math.inf), metric)
    text = client.get(f"/jobs/{claim.job.id}").text
    job = json.loads(text, parse_constant=refuse)
    assert [p["step"] for p in job["loss_curve"]["train"]] == [1, 2]
    assert job["progress"]["eta_seconds"] is None
    store.cancel(claim.job.id)
    store.move(claim, "cancelled")
    for event in client.get(f"/jobs/{claim.job.id}/events").text.splitlines():
        if event.startswith("data: "):
            json.loads(event.removeprefix("data: "), parse_constant=refuse)


def test_thinned(client: TestClient, claim: Claim, attempt: Path) -> None:
    write(attempt, *(train_metric(s) for s in range(1, 301)))
    thinned = get_curve(client, claim, max_points=20)["train"]
    assert len(thinned) == 20
    assert (thinned[0]["step"], thinned[-1]["step"]) == (1, 300)
    assert len(get_curve(client, claim)["train"]) == 300
    assert len(client.get("/jobs").json()[0]["loss_curve"]["train"]) == 100
    assert client.get(f"/jobs/{claim.job.id}", params={"max_points": 1}).status_code == 422


def get_picture(client: TestClient, claim: Claim, etag: str = "", **params: Any) -> Any:
    headers = {"If-None-Match": etag} if etag else {}
    return client.get(f"/jobs/{claim.job.id}/curve.svg", params=params, headers=headers)


def shown(response: Any) -> str:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/svg+xml"
    assert response.headers["cache-control"] == "no-cache"
    return " ".join(ElementTree.fromstring(response.content).itertext())


def test_picture(client: TestClient, claim: Claim, attempt: Path, store: JobStore) -> None:
    empty = shown(get_picture(client, claim))
    assert "no points yet" in empty
    write(attempt, *(train_metric(s, learning_rate=1e-3) for s in range(1, 31)))
    store.move(claim, "running")
    store.report(claim, Progress(step=30, total_steps=1200))
    text = shown(get_picture(client, claim, theme="dark", log=True, width=640, height=480))
    for word in ("yoda", claim.job.id, "running", "step 30 of 1,200", "smoothed", "learning"):
        assert word in text, word
    store.move(claim, "succeeded", adapter_version=7)
    assert "yoda@7" in shown(get_picture(client, claim))


def test_polling_a_picture(client: TestClient, claim: Claim, attempt: Path) -> None:
    write(attempt, train_metric(1))
    first = get_picture(client, claim)
    etag = first.headers["etag"]
    for asked in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = get_picture(client, claim, asked)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["cache-control"] == "no-cache"
    assert get_picture(client, claim, etag, theme="dark").status_code == 200
    assert get_picture(client, claim, etag, width=961).status_code == 200
    write(attempt, train_metric(2))
    newer = get_picture(client, claim, etag)
    assert newer.status_code == 200
    assert newer.headers["etag"] != etag


@pytest.mark.parametrize(
    "params",
    [{"width": 479}, {"width": 100_000}, {"height": 1}, {"theme": "pink"}, {"log": "perhaps"}],
)
def test_pictures_that_cannot_be_drawn(
    client: TestClient, claim: Claim, params: dict[str, Any]
) -> None:
    response = get_picture(client, claim, **params)
    assert (response.status_code, response.json()["code"]) == (422, "invalid")


def test_unknown_job(client: TestClient, claim: Claim) -> None:
    for job_id in ("job-nothing", f"{claim.job.id}:events"):
        response = client.get(f"/jobs/{job_id}/curve.svg")
        assert (response.status_code, response.json()["code"]) == (404, "job_not_found")
