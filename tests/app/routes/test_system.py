"""Health, readiness, metrics, documentation, and errors that no route made."""

import threading
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.engine.engine import Engine
from app.main import create_app
from core.settings import Settings


def test_health_and_ready(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready").json()
    assert ready["status"] == "ok"
    assert ready["forward"] == "own decoder"
    assert {name: c["ok"] for name, c in ready["checks"].items()} == {
        "base_model": True,
        "redis": True,
        "volume": True,
    }


def test_a_device_that_fails_for_good_is_not_ready(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "fault", "CUDA error: unspecified launch failure")
    response = client.get("/ready")
    assert response.status_code == 503
    assert response.json()["checks"]["base_model"] == {
        "ok": False,
        "reason": "CUDA error: unspecified launch failure",
    }
    assert "dragoman_ready 0.0" in client.get("/metrics").text
    translation = client.post("/translate", json={"q": "x", "adapter": "base"})
    assert translation.status_code == 503


def test_a_device_that_fails_for_good_ends_the_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who keeps it up starts another process, in which the device works again."""
    given_up = threading.Event()
    with TestClient(create_app(settings, on_failure=given_up.set)) as client:
        deadline = time.monotonic() + 60
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not given_up.is_set()
        monkeypatch.setattr(Engine, "fault", "CUDA error: unspecified launch failure")
        assert given_up.wait(60)


def test_what_is_asked_for_once_the_model_is_loaded_comes_before_it_serves(
    settings: Settings,
) -> None:
    loaded, may_serve = threading.Event(), threading.Event()

    def hold() -> None:
        loaded.set()
        may_serve.wait(60)

    with TestClient(create_app(settings, on_loaded=hold)) as client:
        assert loaded.wait(60)
        assert client.get("/ready").status_code == 503
        may_serve.set()
        deadline = time.monotonic() + 60
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_metrics(client: TestClient) -> None:
    client.post("/translate", json={"q": "Hello there.", "adapter": "base"})
    client.get("/no/such/path/with/secrets")
    named = ["/jobs/{job_id}/events", "/jobs/{job_id}/curve.svg", "/v1/models/{model}"]
    for route in named:
        client.get(route.format(job_id="none", model="none"))
    text = client.get("/metrics").text
    assert 'dragoman_http_requests_total{method="POST",route="/translate",status="200"}' in text
    for route in named:
        assert f'{{method="GET",route="{route}",status="404"}}' in text
    assert "dragoman_engine_generated_tokens_total" in text
    assert "dragoman_ready 1.0" in text
    assert "secrets" not in text, "a client's words must not become labels"


def test_documentation(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/translate", "/adapters", "/languages", "/jobs", "/datasets", "/ready"} <= set(paths)
    body = paths["/translate"]["post"]["requestBody"]["content"]
    assert "q" in body["application/json"]["schema"]["properties"]
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/translate", 405), ("GET", "/jobs/%00", 404)],
)
def test_problems_everywhere(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status


def test_not_ready_says_why(tmp_path: Path, redis_url: str) -> None:
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path,
        redis_url="unix:///nowhere/redis.sock",
        base_model=str(tmp_path / "no-model"),
    )
    (tmp_path / "no-model").mkdir()
    (tmp_path / "no-model" / "config.json").write_text("{}")
    given_up = threading.Event()
    with TestClient(create_app(settings, on_failure=given_up.set)) as client:
        assert given_up.wait(60)
        response = client.get("/ready")
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        checks = response.json()["checks"]
        assert "no-model" in checks["base_model"]["reason"]
        assert "redis.sock" in checks["redis"]["reason"]
        assert checks["volume"]["ok"]
        translation = client.post("/translate", json={"q": "x", "adapter": "base"})
        assert translation.status_code == 503
        assert translation.json()["code"] == "not_ready"
        assert client.get("/health").status_code == 200
        jobs = client.get("/jobs")
        assert jobs.status_code == 503
        assert jobs.json()["code"] == "redis_unavailable"
