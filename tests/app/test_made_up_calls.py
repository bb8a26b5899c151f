"""Calls that openapi.json allows, and calls that it forbids, made up by Schemathesis, to the server as a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig

from embedded.__main__ import claim_port
from embedded.redis_server import EmbeddedRedis
from scripts.write_openapi import PATH

pytestmark = pytest.mark.slow  # hundreds of calls to each of some fifty operations

ROOT = PATH.parent
PAIRS = "source,target\n" + "".join(f"I see {i} birds.,{i} birds I see.\n" for i in range(20))
# Their bodies name what has to be there, or nothing is done.
NAMING = ["/translate", "/suggest", "/jobs", "/v1/chat/completions", "/v1/fine_tuning/jobs"]
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]
CONFIG = {
    "seed": 1,
    "suppress-health-check": ["all"],
    "request-timeout": 60,
    "generation": {
        "max-examples": 8,
        "deterministic": True,
        "no-shrink": True,
        "database": "none",
    },
    "checks": {"enabled": False} | {name: {"enabled": True} for name in CHECKS},
    "operations": [
        # Numbers and switches are taken in whatever way clients and forms write them: "8", false.
        {
            "include-path": NAMING,
            "checks": {"negative_data_rejection": {"enabled": False}},
        }
    ],
}

api = schemathesis.openapi.from_path(PATH, config=SchemathesisConfig.from_dict(CONFIG))


@pytest.fixture(scope="module")
def url(_redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without a worker, whose translations are short."""
    port = claim_port("127.0.0.1", 0)
    settings = {
        "PORT": str(port),
        "DATA_DIR": str(tmp_path_factory.mktemp("made-up")),
        "REDIS_URL": f"{_redis_server.url}?db=3",
        "NUM_THREADS": "1",
        "MAX_NEW_TOKENS": "4",
        "MAX_TEXT_CHARS": "200",
        "MAX_BATCH": "4",
        "MAX_QUEUED_JOBS": "100000",
    }
    env = os.environ | {f"DRAGOMAN_{name}": value for name, value in settings.items()}
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, "-m", "app.main"], cwd=ROOT, env=env) as server:
        try:
            deadline = time.monotonic() + 240
            while not _is_ready(url):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()


@dataclass(frozen=True)
class Existing:
    """Names of things that are there: for path parameters, and for JSON bodies by path."""

    parameters: dict[str, Any]
    bodies: dict[str, dict[str, Any]]


@pytest.fixture
def existing(url: str) -> Existing:
    with httpx.Client(base_url=url, timeout=60) as client:
        client.put("/adapters/yoda/current", json={"version": 1}).raise_for_status()
        file = {"file": ("pairs.csv", PAIRS)}
        dataset = client.post("/datasets", files=file).raise_for_status().json()["id"]
        asked = {"dataset_id": dataset, "adapter": "mine"}
        job = client.post("/jobs", json=asked).raise_for_status().json()["id"]
        # Its stream of events ends.
        client.post(f"/jobs/{job}/cancel").raise_for_status()
    return Existing(
        parameters={
            "name": "yoda",
            "number": 1,
            "dataset_id": dataset,
            "file_id": dataset,
            "job_id": job,
            "model": "yoda@1",
        },
        bodies={
            "/translate": {"adapter": "yoda"},
            "/suggest": {"source": "en", "target": "en-x-yoda"},
            "/jobs": asked,
            "/v1/chat/completions": {"model": "yoda"},
            "/v1/fine_tuning/jobs": {"model": "base", "training_file": dataset},
        },
    )


@api.exclude(path=NAMING, method="POST").parametrize()
def test_no_call_breaks_the_server_or_its_description(case: schemathesis.Case, url: str) -> None:
    case.call_and_validate(base_url=url)


@api.include(path_regex=r"\{").include(path=NAMING, method="POST").parametrize()
def test_nor_does_one_about_what_exists(
    case: schemathesis.Case, url: str, existing: Existing
) -> None:
    case.path_parameters = {name: existing.parameters[name] for name in case.path_parameters}
    if case.media_type == "application/json" and isinstance(case.body, dict):
        case.body = case.body | existing.bodies.get(case.operation.path, {})
    case.call_and_validate(base_url=url)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == httpx.codes.OK
    except httpx.ConnectError:
        return False
