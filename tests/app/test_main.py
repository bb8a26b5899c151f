"""The server as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import redis

from core.job_store import JobStore
from core.jobs import Job
from core.training_config import JobConfig
from embedded.__main__ import claim_port

ROOT = Path(__file__).resolve().parent.parent.parent


def test_an_open_stream_of_events_does_not_hold_up_the_end(tmp_path: Path, redis_url: str) -> None:
    store = JobStore(
        redis.Redis.from_url(redis_url, decode_responses=True), lease_s=30, max_attempts=3
    )
    job = Job(
        id="job-1", adapter="a", dataset_id="d", config=JobConfig(), created_at=datetime.now(UTC)
    )
    store.create(job, max_queued=1)
    port = claim_port("127.0.0.1", 0)
    env = {
        "DRAGOMAN_DATA_DIR": str(tmp_path),
        "DRAGOMAN_REDIS_URL": redis_url,
        "DRAGOMAN_PORT": str(port),
        "DRAGOMAN_STOP_GRACE_S": "300",
        "DRAGOMAN_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "app.main"], cwd=ROOT, env=os.environ | env
    ) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                deadline = time.monotonic() + 240
                while not _is_ready(client):
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                with client.stream("GET", "/jobs/job-1/events") as response:
                    lines = response.iter_lines()
                    status = next(line for line in lines if line.startswith("data:"))
                    assert json.loads(status.removeprefix("data:")) == {"status": "queued"}
                    server.send_signal(signal.SIGTERM)
                    started = time.monotonic()
                    assert "event: done" not in list(lines)
            server.wait(60)
            assert time.monotonic() - started < 60
        finally:
            server.kill()


def test_a_stopping_server_finishes_and_refuses(tmp_path: Path, redis_url: str) -> None:
    port = claim_port("127.0.0.1", 0)
    env = {
        "DRAGOMAN_DATA_DIR": str(tmp_path),
        "DRAGOMAN_REDIS_URL": redis_url,
        "DRAGOMAN_PORT": str(port),
        "DRAGOMAN_STOP_GRACE_S": "60",
        "DRAGOMAN_NUM_THREADS": "1",
    }
    url = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen(
            [sys.executable, "-m", "app.main"], cwd=ROOT, env=os.environ | env
        ) as server,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        try:
            deadline = time.monotonic() + 240
            while not _is_ready(client):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            # Several: one might end by chance before it is looked at.
            long = {"q": ["Once upon a time"] * 4, "adapter": "base", "max_new_tokens": 1000}
            long |= {"temperature": 5.0, "seed": 1, "stream": True}
            with client.stream("POST", "/translate", json=long) as answer:
                lines = answer.iter_lines()
                next(lines)
                server.send_signal(signal.SIGTERM)
                refused = httpx.get(f"{url}/languages")
                while refused.status_code == httpx.codes.OK:  # it has not heard the signal yet
                    refused = httpx.get(f"{url}/languages")
                assert refused.status_code == 503
                assert refused.json()["code"] == "stopping"
                assert refused.headers["Retry-After"]
                assert httpx.get(f"{url}/ready").status_code == 503
                assert httpx.get(f"{url}/health").status_code == 200
                assert "event: done" in list(lines), "what was begun is finished"
            assert server.wait(60) == 0
        finally:
            server.kill()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == httpx.codes.OK
    except httpx.ConnectError:
        return False
