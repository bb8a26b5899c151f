import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from app import problems
from app.deps import get_datasets, get_jobs, get_settings, get_token_counter, get_volume
from app.routes.datasets import router
from core.datasets import DatasetStore
from core.job_store import JobStore
from core.jobs import Job
from core.settings import Settings
from core.training_config import JobConfig
from core.volume import Volume
from tests.app.ingestion.uploads import count_words

GOOD = b'prompt,completion\nThe tea is hot.,"Hot, the tea is."\nI am late.,"Late, I am."\n'


@pytest.fixture
def jobs(settings: Settings) -> Iterator[JobStore]:
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        yield JobStore(client, lease_s=settings.job_lease_s, max_attempts=settings.max_attempts)


@pytest.fixture
def client(settings: Settings, volume: Volume, jobs: JobStore) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(router)
    app.dependency_overrides = {
        get_datasets: lambda: DatasetStore(volume),
        get_jobs: lambda: jobs,
        get_settings: lambda: settings,
        get_token_counter: lambda: count_words,
        get_volume: lambda: volume,
    }

    problems.install(app)
    with TestClient(app) as client:
        yield client


def upload(
    client: TestClient, content: bytes = GOOD, filename: str = "tea.csv", **fields: Any
) -> Response:
    return client.post("/datasets", files={"file": (filename, content)}, data=fields)


def things_on(volume: Volume) -> list[str]:
    staged = [str(p) for p in (volume.root / "staging").iterdir()]
    return staged + [str(p) for p in volume.datasets.iterdir()]


def test_an_upload_is_answered_with_the_dataset_and_its_place(client: TestClient) -> None:
    response = upload(client)

    assert response.status_code == 201
    body = response.json()
    assert response.headers["location"] == f"/datasets/{body['id']}"
    assert body["name"] == "tea"
    assert body["format"] == "csv"
    assert body["rows"] == 2
    assert body["columns"] == ["prompt", "completion"]
    assert body["mapping"] == {"source": "prompt", "target": "completion"}
    assert body["preview"][1] == {
        "prompt": "I am late.",
        "completion": "Late, I am.",
        "further": [],
    }
    assert body["report"] == {
        "errors": [],
        "warnings": [],
        "unusable": 0,
        "duplicates": 0,
        "empty": 0,
        "too_long": 0,
        "tokens": {"min": 6, "median": 6, "p95": 8, "max": 8, "total": 14},
    }
    assert client.get(response.headers["location"]).json() == body
    assert client.get("/datasets").json() == [body]


def test_the_form_says_name_mapping_and_what_to_do_about_errors(client: TestClient) -> None:
    response = upload(
        client,
        b"a\tb\tc\n1\t2\t3\n4\t\t\n",
        "x.tsv",
        name="Tea",
        mapping=json.dumps({"source": "c", "target": "a"}),
        on_error="skip",
    )

    assert response.status_code == 201
    body = response.json()
    assert body["name"] == "Tea"
    assert body["mapping"] == {"source": "c", "target": "a"}
    assert body["preview"] == [{"prompt": "3", "completion": "1", "further": []}]
    assert body["report"]["unusable"] == 1
    assert body["report"]["errors"] == [
        {"line": 3, "column": "c", "code": "empty", "message": "is empty"}
    ]


def test_the_form_names_the_encoding(client: TestClient) -> None:
    content = "prompt,completion\n左师公曰。,左师公说。\n".encode("gb18030")
    response = upload(client, content, encoding="gbk")

    assert response.status_code == 201
    assert response.json()["preview"][0]["completion"] == "左师公说。"
    assert response.json()["report"]["warnings"] == []


def test_empty_form_fields_are_as_good_as_none(client: TestClient) -> None:
    response = upload(client, mapping="", name="", encoding="")
    assert response.status_code == 201
    assert response.json()["name"] == "tea"


def test_a_faulty_file_is_refused_with_its_report(client: TestClient, volume: Volume) -> None:
    response = upload(client, GOOD + b"no target,\n")

    assert response.status_code == 422
    body = response.json()
    assert body["code"] == "dataset_invalid"
    assert "line 4, column 'completion'" in body["detail"]
    assert body["report"]["errors"] == [
        {"line": 4, "column": "completion", "code": "empty", "message": "is empty"}
    ]
    assert things_on(volume) == []


@pytest.mark.parametrize(
    ("content", "filename", "fields", "status", "code"),
    [
        (b"", "a.csv", {}, 422, "dataset_invalid"),
        (b"prompt\na\n", "a.csv", {}, 422, "dataset_invalid"),
        (b"prompt,completion\n", "a.csv", {}, 422, "dataset_invalid"),
        (b"prompt,completion\n\xff,b\n", "a.csv", {}, 422, "dataset_invalid"),
        (b"prompt,completion\na\0,b\n", "a.csv", {}, 422, "dataset_invalid"),
        (GOOD, "a.csv", {"mapping": "{"}, 422, "mapping_invalid"),
        (GOOD, "a.csv", {"mapping": '{"source": "x", "target": "y"}'}, 422, "dataset_invalid"),
        (b"PAR1", "a.parquet", {}, 422, "dataset_invalid"),
        (b"<tmx>", "a.tmx", {}, 422, "dataset_invalid"),
        (b"%PDF-1.7", "a.csv", {}, 415, "unsupported_format"),
        (GOOD, "a.csv", {"encoding": "klingon"}, 422, "encoding_unknown"),
        (GOOD + "é,è\n".encode(), "a.csv", {"encoding": "ascii"}, 422, "dataset_invalid"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(
    client: TestClient,
    volume: Volume,
    content: bytes,
    filename: str,
    fields: dict[str, str],
    status: int,
    code: str,
) -> None:
    response = upload(client, content, filename, **fields)

    assert response.status_code == status
    assert response.json()["code"] == code
    assert things_on(volume) == []


@pytest.mark.parametrize(
    "fields", [{"on_error": "ignore"}, {"on_eror": "skip"}, {"name": "n" * 201}]
)
def test_fields_that_do_not_exist_are_refused(
    client: TestClient, volume: Volume, fields: dict[str, str]
) -> None:
    response = upload(client, **fields)

    assert response.status_code == 422
    assert next(iter(fields)) in response.text
    assert things_on(volume) == []


def test_an_upload_needs_a_file(client: TestClient) -> None:
    assert client.post("/datasets", data={"name": "x"}).status_code == 422
    assert client.post("/datasets", data={"file": "text"}).status_code == 422
    assert client.post("/datasets", json={"file": "text"}).status_code == 422
    assert client.post("/datasets").status_code == 422


def test_a_file_over_the_limit_is_refused(
    client: TestClient, settings: Settings, volume: Volume
) -> None:
    settings.max_upload_mb = 1
    response = upload(client, b"prompt,completion\n" + b"a,b\n" * 300_000)

    assert response.status_code == 413
    assert response.json()["code"] == "too_large"
    assert "1 MiB" in response.json()["detail"]
    assert things_on(volume) == []


def test_a_file_that_was_spooled_to_disk_is_read(client: TestClient) -> None:
    lines = "".join(f"source {i},target {i}\n" for i in range(60_000))
    response = upload(client, b"prompt,completion\n" + lines.encode())
    assert response.json()["rows"] == 60_000


def test_the_same_file_twice_is_one_dataset(client: TestClient) -> None:
    first, second = upload(client), upload(client)

    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    assert len(client.get("/datasets").json()) == 1


def test_a_deleted_dataset_is_gone(client: TestClient, volume: Volume) -> None:
    place = upload(client).headers["location"]

    response = client.delete(place)
    assert response.status_code == 204
    assert response.content == b""
    assert client.get(place).status_code == 404
    assert client.delete(place).status_code == 404
    assert things_on(volume) == []


def test_a_dataset_that_a_job_needs_stays(client: TestClient, jobs: JobStore) -> None:
    dataset_id = upload(client).json()["id"]
    job = Job(
        id="job-1",
        adapter="tea",
        dataset_id=dataset_id,
        config=JobConfig(),
        created_at=datetime.now(UTC),
    )
    jobs.create(job, max_queued=10)

    response = client.delete(f"/datasets/{dataset_id}")
    assert response.status_code == 409
    assert response.json()["code"] == "dataset_in_use"
    assert client.get(f"/datasets/{dataset_id}").status_code == 200

    jobs.cancel("job-1")
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204


@pytest.mark.parametrize(
    "dataset_id", ["ds-0000000000000000", "..", "%2e%2e%2fadapters", "x" * 999]
)
def test_an_unknown_dataset_is_not_found(client: TestClient, dataset_id: str) -> None:
    for method in ("GET", "DELETE"):
        assert client.request(method, f"/datasets/{dataset_id}").status_code in (404, 405)


@pytest.mark.parametrize("name", ["a\0b", "x" * 201])
def test_a_name_that_cannot_be(client: TestClient, name: str) -> None:
    file = ("a.csv", b"prompt,completion\na b,b a\n")
    response = client.post("/datasets", files={"file": file}, data={"name": name})
    assert (response.status_code, response.json()["code"]) == (422, "invalid")
