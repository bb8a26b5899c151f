"""Submitting and watching jobs, without a worker: what the server alone decides."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import redis
from fastapi.testclient import TestClient

from core.job_store import JobStore
from core.jobs import Progress, TrainPoint
from core.metrics import Metric, append_metric
from core.settings import Settings
from core.volume import Volume

CSV = b'prompt,completion\nThe soup is cold.,"Cold, the soup is."\nI see you.,"See you, I do."\n'


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


def submit(client: TestClient, file: bytes = CSV, name: str = "a.csv", **form: str) -> Any:
    return client.post(
        "/jobs", files={"file": (name, io.BytesIO(file))}, data={"adapter": "yoda", **form}
    )


def queue_length(settings: Settings) -> int:
    with redis.Redis.from_url(settings.redis_url) as connection:
        return int(connection.llen("training"))  # type: ignore[arg-type]


def snapshot(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if "redis" not in p.parts}


def test_a_file_becomes_a_dataset_and_a_queued_job(
    client: TestClient, app_settings: Settings
) -> None:
    config = {"source": "en", "training": {"max_steps": 3}, "lora": {"r": 4}}
    response = submit(client, config=json.dumps(config))
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["Location"] == f"/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["adapter"] == "yoda"
    assert job["config"]["training"]["max_steps"] == 3
    assert job["config"]["training"]["learning_rate"] > 0, "the config is resolved"
    assert job["loss_curve"] == {"train": [], "eval": []}
    assert queue_length(app_settings) == 1
    assert client.get(response.headers["Location"]).json() == job | {"expected_start": ANY}
    dataset = client.get(f"/datasets/{job['dataset_id']}").json()
    assert dataset["rows"] == 2
    again = client.post("/jobs", json={"dataset_id": dataset["id"], "adapter": "yoda"})
    assert again.status_code == 202
    assert client.delete(f"/datasets/{dataset['id']}").status_code == 409


def test_an_idempotency_key_makes_a_retry_the_same_job(
    client: TestClient, app_settings: Settings
) -> None:
    dataset = submit(client).json()["dataset_id"]
    body = {"dataset_id": dataset, "adapter": "yoda"}
    first, second = (
        client.post("/jobs", json=body, headers={"Idempotency-Key": "k1"}) for _ in range(2)
    )
    other = client.post("/jobs", json=body, headers={"Idempotency-Key": "k2"})
    assert first.json()["id"] == second.json()["id"] != other.json()["id"]
    assert queue_length(app_settings) == 3


def test_a_retry_after_the_dataset_was_deleted_gives_the_job_that_there_is(
    client: TestClient,
) -> None:
    dataset = submit(client).json()["dataset_id"]
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "json": ("/jobs", {"json": {"dataset_id": dataset, "adapter": "yoda"}}),
        "file": ("/jobs", {"files": {"file": ("a.csv", CSV)}, "data": {"adapter": "yoda"}}),
        "openai": ("/v1/fine_tuning/jobs", {"json": {"model": "base", "training_file": dataset}}),
    }

    def send(key: str) -> Any:
        url, content = requests[key]
        return client.post(url, headers={"Idempotency-Key": key}, **content)

    made = {}
    for key in requests:
        made[key] = send(key).json()["id"]
        client.post(f"/jobs/{made[key]}/cancel")
    for job in client.get("/jobs").json():
        if job["status"] == "queued":
            client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/datasets/{dataset}").status_code == 204
    for key, job_id in made.items():
        again = send(key)
        assert again.status_code in (200, 202), again.text
        assert (again.json()["id"], again.json()["status"]) == (job_id, "cancelled")
    assert client.get(f"/datasets/{dataset}").status_code == 404, "a retry stores nothing"

    assert client.delete(f"/jobs/{made['json']}").status_code == 204
    gone = send("json")
    assert (gone.status_code, gone.json()["code"]) == (404, "dataset_not_found")
    assert send("file").json()["id"] == made["file"]


def test_the_queue_is_bounded(client: TestClient) -> None:
    for _ in range(3):
        assert submit(client).status_code == 202
    response = submit(client)
    assert response.status_code == 503
    assert response.json()["code"] == "queue_full"
    assert response.headers["Retry-After"] == "30"


def test_list_filters_and_pages(client: TestClient) -> None:
    ids = [submit(client, adapter=name).json()["id"] for name in ("a", "b", "a")]
    listed = client.get("/jobs")
    assert [j["id"] for j in listed.json()] == ids[::-1]
    assert "Link" not in listed.headers
    only = client.get("/jobs", params={"adapter": "a", "limit": 1})
    assert [j["id"] for j in only.json()] == [ids[2]]
    rest = client.get(only.links["next"]["url"])
    assert [j["id"] for j in rest.json()] == [ids[0]]
    assert client.get("/jobs", params={"status": "running"}).json() == []
    assert client.get("/jobs", params={"status": "resting"}).status_code == 422
    assert client.get("/jobs", params={"limit": 0}).status_code == 422


def test_an_unreadable_job_hides_no_other(client: TestClient, app_settings: Settings) -> None:
    spoilt, sound = submit(client).json(), submit(client).json()
    with redis.Redis.from_url(app_settings.redis_url) as connection:
        connection.hset(f"dragoman:job:{spoilt['id']}", "record", "{}")
    for prefix in ("/jobs", "/v1/fine_tuning/jobs"):
        listed = client.get(prefix)
        assert listed.status_code == 200
        page = listed.json()
        found = page if isinstance(page, list) else page["data"]
        assert [job["id"] for job in found] == [sound["id"]]
    url = f"/jobs/{spoilt['id']}"
    assert client.get(f"/jobs/{sound['id']}").json()["queue_position"] == 2
    for response in (client.get(url), client.post(f"{url}/cancel"), client.get(f"{url}/events")):
        problem = response.json()
        assert (response.status_code, problem["code"]) == (409, "job_unreadable")
        assert spoilt["id"] in problem["detail"]
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404


def test_cancel_a_waiting_job(client: TestClient) -> None:
    job = submit(client).json()
    cancelled = client.post(f"/jobs/{job['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["finished_at"]
    again = client.post(f"/jobs/{job['id']}/cancel")
    assert again.status_code == 409
    assert again.json()["code"] == "job_ended"


@pytest.mark.parametrize("path", ["", "/cancel", "/pause", "/resume", "/events", "/log"])
def test_unknown_jobs(client: TestClient, path: str) -> None:
    url = f"/jobs/job-nothing{path}"
    is_order = path in ("/cancel", "/pause", "/resume")
    response = client.post(url) if is_order else client.get(url)
    assert response.status_code == 404
    assert response.json()["code"] == "job_not_found"


class TestOrders:
    """Pause, resume, cancel with publish, delete."""

    @pytest.fixture
    def job(self, client: TestClient) -> str:
        return str(submit(client).json()["id"])

    @staticmethod
    def refused(response: Any, code: str) -> None:
        assert (response.status_code, response.json()["code"]) == (409, code)

    def test_pause_and_resume_a_waiting_job(
        self, client: TestClient, app_settings: Settings, job: str
    ) -> None:
        self.refused(client.post(f"/jobs/{job}/resume"), "job_not_paused")
        paused = client.post(f"/jobs/{job}/pause").json()
        assert (paused["status"], paused["queue_position"]) == ("paused", None)
        self.refused(client.post(f"/jobs/{job}/pause"), "job_not_pausable")
        before = queue_length(app_settings)
        resumed = client.post(f"/jobs/{job}/resume").json()
        assert (resumed["status"], resumed["queue_position"]) == ("queued", 1)
        assert resumed["created_at"] == paused["created_at"]
        assert queue_length(app_settings) == before + 1

    def test_a_running_job(self, client: TestClient, store: JobStore, job: str) -> None:
        claim = store.claim(job)
        assert claim
        store.move(claim, "running")
        assert client.post(f"/jobs/{job}/pause").json()["status"] == "pausing"
        self.refused(client.post(f"/jobs/{job}/resume"), "job_not_paused")
        self.refused(client.delete(f"/jobs/{job}"), "job_not_ended")
        store.release(claim)
        assert client.get(f"/jobs/{job}").json()["status"] == "paused"

    @pytest.mark.parametrize(
        ("request_", "publishes"),
        [
            ({}, False),
            ({"params": {"publish": "true"}}, True),
            ({"json": {"publish": True}}, True),
            ({"json": {"publish": False}}, False),
        ],
    )
    def test_cancel_and_publish(
        self,
        client: TestClient,
        store: JobStore,
        job: str,
        request_: dict[str, Any],
        publishes: bool,
    ) -> None:
        claim = store.claim(job)
        assert claim
        response = client.post(f"/jobs/{job}/cancel", **request_)
        assert response.json()["status"] == "cancelling"
        assert store.renew(claim).publishes == publishes

    def test_bad_cancel(self, client: TestClient, job: str) -> None:
        response = client.post(f"/jobs/{job}/cancel", json={"publish": "perhaps"})
        assert (response.status_code, response.json()["code"]) == (422, "invalid")
        response = client.post(f"/jobs/{job}/cancel", json={"surprise": 1})
        assert response.status_code == 422
        assert client.get(f"/jobs/{job}").json()["status"] == "queued"

    @pytest.mark.parametrize("prefix", ["/jobs", "/v1/fine_tuning/jobs"])
    def test_a_cancelled_job_needs_no_checkpoints(
        self, client: TestClient, app_settings: Settings, job: str, prefix: str
    ) -> None:
        folder = Volume(app_settings.data_dir).jobs / job
        (folder / "checkpoints" / "step-5").mkdir(parents=True)
        assert client.post(f"{prefix}/{job}/cancel").json()["status"] == "cancelled"
        assert list(folder.iterdir()) == []

    def test_a_page_of_events_after_what_is_no_event(self, client: TestClient, job: str) -> None:
        url = f"/v1/fine_tuning/jobs/{job}/events"
        for after in ("nonsense", "ftevent-1", "ftevent-١-١"):
            response = client.get(url, params={"after": after})
            assert (response.status_code, response.json()["error"]["code"]) == (
                400,
                "after_invalid",
            )

    def test_delete(
        self, client: TestClient, app_settings: Settings, store: JobStore, job: str
    ) -> None:
        folder = Volume(app_settings.data_dir).jobs / job
        (folder / "attempt-1").mkdir(parents=True)
        self.refused(client.delete(f"/jobs/{job}"), "job_not_ended")
        assert folder.exists()
        (folder / "checkpoints" / "step-5").mkdir(parents=True)
        client.post(f"/jobs/{job}/cancel")
        assert sorted(p.name for p in folder.iterdir()) == ["attempt-1"], "checkpoints go at once"
        deleted = client.delete(f"/jobs/{job}")
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert not folder.exists()
        for response in (client.get(f"/jobs/{job}"), client.delete(f"/jobs/{job}")):
            assert (response.status_code, response.json()["code"]) == (404, "job_not_found")
        assert client.get("/jobs").json() == []


@pytest.mark.parametrize(
    ("device", "there", "hint"),
    [
        ("auto", [], "no worker is there now, so the job waits for one, on a CPU or a GPU"),
        ("auto", ["cpu"], None),
        ("auto", ["cuda"], None),
        ("cpu", ["cpu"], None),
        ("cuda", ["cpu", "cuda"], None),
        (
            "cuda",
            ["cpu"],
            "config.device: no worker for 'cuda' is there now, so the job waits for one; that for 'cpu' takes jobs "
            "with 'cpu' or 'auto'",
        ),
        (
            "cpu",
            [],
            "config.device: no worker for 'cpu' is there now, so the job waits for one; nor is there any other",
        ),
    ],
)
def test_a_queued_job_says_that_no_worker_will_take_it(
    client: TestClient, store: JobStore, device: str, there: list[str], hint: str | None
) -> None:
    for name in there:
        store.presence.tell_working(name, for_s=600)
    job = submit(client, config=json.dumps({"device": device})).json()
    shown = [job, client.get(f"/jobs/{job['id']}").json(), *client.get("/jobs").json()]
    assert [j["warnings"] for j in shown] == [[hint] if hint else []] * 3
    paused = client.post(f"/jobs/{job['id']}/pause").json()
    assert paused["warnings"] == [], "it waits for no worker"
    assert client.post(f"/jobs/{job['id']}/resume").json()["warnings"] == job["warnings"]
    claim = store.claim(job["id"])
    assert claim
    assert claim.job.warnings == [], "it is no part of the record"
    assert client.get(f"/jobs/{job['id']}").json()["warnings"] == []


def test_priority_and_place(client: TestClient) -> None:
    ids = [submit(client, priority=p).json()["id"] for p in ("low", "normal", "high")]
    listed = {j["id"]: j for j in client.get("/jobs").json()}
    assert [listed[i]["queue_position"] for i in ids] == [3, 2, 1]
    assert [listed[i]["priority"] for i in ids] == ["low", "normal", "high"]
    first = client.get(f"/jobs/{ids[2]}").json()
    assert first["expected_start"], "no worker is busy"
    assert listed[ids[0]]["expected_start"] is None, "nobody knows how long a job takes"
    response = submit(client, priority="urgent")
    assert response.status_code == 422
    assert "'low', 'normal' or 'high'" in response.json()["detail"]


def test_the_curve_and_the_events(
    client: TestClient, store: JobStore, app_settings: Settings
) -> None:
    job_id = submit(client).json()["id"]
    claim = store.claim(job_id)
    assert claim is not None
    attempt = Volume(app_settings.data_dir).attempt(job_id, claim.job.attempt)
    attempt.mkdir(parents=True)
    store.move(claim, "running")
    for step in (1, 2, 3):
        metric = Metric(train=TrainPoint(step=step, epoch=step / 3, loss=3.0 - step))
        append_metric(attempt, metric)
        store.report(claim, Progress(step=step, total_steps=3, percent=step * 33.3), metric)
    (attempt / "log.txt").write_text("a line\n")
    job = client.get(f"/jobs/{job_id}").json()
    assert job["status"] == "running"
    assert job["progress"]["step"] == 3
    assert [p["loss"] for p in job["loss_curve"]["train"]] == [2.0, 1.0, 0.0]
    newer = client.get(f"/jobs/{job_id}", params={"after_step": 2}).json()
    assert [p["step"] for p in newer["loss_curve"]["train"]] == [3]
    assert client.get(f"/jobs/{job_id}/log").text == "a line\n"

    cancelling = client.post(f"/jobs/{job_id}/cancel").json()
    assert cancelling["status"] == "cancelling"
    store.move(claim, "cancelled")
    events = read_events(client.get(f"/jobs/{job_id}/events").text)
    kinds = [(e["event"], e["data"].get("status")) for e in events]
    assert kinds == [
        ("status", "queued"),
        ("status", "preparing"),
        ("status", "running"),
        ("metrics", None),
        ("metrics", None),
        ("metrics", None),
        ("status", "cancelling"),
        ("status", "cancelled"),
        ("done", "cancelled"),
    ]
    assert events[4]["data"]["train"]["loss"] == 1.0
    resumed = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": events[6]["id"]})
    assert read_events(resumed.text) == events[7:]
    seen_all = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": events[8]["id"]})
    assert read_events(seen_all.text) == []
    bad = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "x"})
    assert bad.status_code == 422


def read_events(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if not line.startswith(":") and line
        )
        if fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    return events


@pytest.mark.parametrize(
    ("form", "status", "code", "word"),
    [
        ({"adapter": "../x"}, 422, "adapter_name_invalid", "'../x'"),
        ({"adapter": "base"}, 422, "adapter_name_invalid", "base"),
        ({"adapter": "UPPER"}, 422, "adapter_name_invalid", "a-z"),
        ({"adapter": ""}, 422, "adapter_name_invalid", "1 to 63"),
        ({"config": "{"}, 400, "malformed", "config is not JSON"),
        ({"config": "[]"}, 422, "invalid", "config"),
        ({"config": '{"learning_rate": 1}'}, 422, "invalid", "config.learning_rate"),
        ({"config": '{"lora": {"r": 0}}'}, 422, "invalid", "got 0"),
        ({"config": '{"lora": {"r": 200}}'}, 422, "rank_too_large", "128"),
        ({"config": '{"lora": {"target_modules": ["nope"]}}'}, 422, "target_modules_invalid", "qkv_proj"),
        ({"config": '{"training": {"learning_rate": NaN}}'}, 422, "invalid", "learning_rate"),
        ({"config": '{"training": {"learning_rate": 1e999}}'}, 422, "invalid", "learning_rate"),
        ({"config": '{"training": {"max_length": 100000}}'}, 422, "max_length_too_large", "4096"),
        ({"config": '{"training": {"optim": "magic"}}'}, 422, "invalid", "adamw_torch"),
        ({"config": '{"prompt": {"template": "no place"}}'}, 422, "invalid", "{text}"),
        ({"config": '{"target": "!!"}'}, 422, "invalid", "BCP 47"),
        ({"mapping": '{"source": "nope", "target": "completion"}'}, 422, "dataset_invalid", "nope"),
        ({"on_error": "maybe"}, 422, "invalid", "'fail' or 'skip'"),
        ({"colour": "red"}, 422, "invalid", "colour"),
    ],
)  # fmt: skip
def test_bad_jobs_are_refused_and_nothing_is_written(
    client: TestClient,
    app_settings: Settings,
    form: dict[str, str],
    status: int,
    code: str,
    word: str,
) -> None:
    before = snapshot(app_settings.data_dir)
    file = b"prompt,completion\nunique to this test,refused\n"
    response = submit(client, file, **form)
    assert response.status_code == status, response.text
    assert response.json()["code"] == code
    assert word in response.json()["detail"]
    assert snapshot(app_settings.data_dir) == before
    assert client.get("/jobs").json() == []
    assert queue_length(app_settings) == 0


def test_the_name_of_a_jobs_file_is_bounded_as_a_datasets_is(client: TestClient) -> None:
    form = {"adapter": "yoda", "name": "n" * 201}
    for path in ("/datasets", "/jobs"):
        response = client.post(path, files={"file": ("a.csv", CSV)}, data=form)
        assert response.status_code == 422
        assert re.search("^name: .* at most 200 characters, not 201 ", response.json()["detail"])


@pytest.mark.parametrize(
    ("name", "file", "status"),
    [
        ("a.csv", b"", 422),
        ("a.csv", b"prompt,completion\n", 422),
        ("a.csv", b"prompt\nonly\n", 422),
        ("a.jsonl", b'{"prompt": "x"}\n', 422),
        ("a.csv", b"prompt,completion\n\xff\xfe,x\n", 422),
        ("a.exe", b"MZ\x00", 415),
        ("a.csv", b"prompt,completion\n" + b"x,y\n" * 300_000, 413),
    ],
)
def test_bad_files_are_refused_and_nothing_is_written(
    client: TestClient, app_settings: Settings, name: str, file: bytes, status: int
) -> None:
    before = snapshot(app_settings.data_dir)
    response = submit(client, file, name)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert snapshot(app_settings.data_dir) == before


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"adapter": "yoda"}, 422, "dataset_id"),
        ({"adapter": "yoda", "dataset_id": "ds-none"}, 404, "ds-none"),
        ({"adapter": "yoda", "dataset_id": "../../etc"}, 404, "../../etc"),
        ({"adapter": "yoda", "dataset_id": "x", "surprise": 1}, 422, "surprise"),
        ([], 422, "body"),
    ],
)
def test_bad_json_jobs(client: TestClient, body: Any, status: int, word: str) -> None:
    response = client.post("/jobs", json=body)
    assert response.status_code == status, response.text
    assert word in response.json()["detail"]


def test_other_media_types(client: TestClient) -> None:
    response = client.post("/jobs", content=b"x", headers={"content-type": "text/csv"})
    assert response.status_code == 415
    no_file = client.post("/jobs", files={"other": ("a.csv", b"x")}, data={"adapter": "yoda"})
    assert no_file.status_code == 422
    assert no_file.json()["code"] == "file_missing"


@pytest.mark.parametrize("kind", ["events", "lease"])
def test_another_key_of_a_job_is_no_job(client: TestClient, store: JobStore, kind: str) -> None:
    job_id = submit(client).json()["id"]
    store.claim(job_id)
    for path in ("", "/log", "/events"):
        assert client.get(f"/jobs/{job_id}:{kind}{path}").status_code == 404
    assert client.post(f"/jobs/{job_id}:{kind}/cancel").status_code == 404


@pytest.mark.parametrize("config", ["[" * 100_000, "1" * 5000])
def test_a_config_that_is_not_json(client: TestClient, config: str) -> None:
    response = submit(client, config=config)
    assert (response.status_code, response.json()["code"]) == (400, "malformed")


def test_a_redis_that_is_full(client: TestClient, app_settings: Settings) -> None:
    with redis.Redis.from_url(app_settings.redis_url) as connection:
        connection.config_set("maxmemory", 1)
        try:
            response = submit(client)
        finally:
            connection.config_set("maxmemory", 0)
    assert (response.status_code, response.json()["code"]) == (503, "redis_unavailable")
