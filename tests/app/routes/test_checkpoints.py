"""Translating with what a job has learnt so far, while the real worker trains it."""

import io
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.translator import Translator
from core.adapter_version import SEAL_FILE, AdapterVersion
from core.adapters import AdapterRegistry
from core.checkpoints import find_checkpoints
from core.job_store import JobStore
from core.settings import Settings
from core.volume import Volume
from tests.app.routes.test_translate import events, problem
from tests.worker.conftest import ROWS
from worker.lease import LeaseKeeper, StopRequest, WorkerStoppingError
from worker.run import run_job

TEXT = ROWS[0].prompt
# It must not get to its end, nor lose a checkpoint that a test has just asked for.
CONFIG = {
    "source": "en",
    "target": "en-x-inverted",
    "lora": {"r": 4, "lora_alpha": 8},
    "training": {
        "max_steps": 100_000,
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    },
}


def submit(client: TestClient, **training: Any) -> str:
    rows = "prompt,completion\n" + "".join(f'{r.prompt},"{r.completion}"\n' for r in ROWS)
    config = CONFIG | {"training": CONFIG["training"] | training}  # type: ignore[operator]
    response = client.post(
        "/jobs",
        files={"file": ("rows.csv", io.BytesIO(rows.encode()))},
        data={"adapter": "inverted", "config": json.dumps(config)},
    )
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def ask(client: TestClient, adapter: str, **body: Any) -> Any:
    return client.post("/translate", json={"q": TEXT, "adapter": adapter, **body})


def steps(client: TestClient, job: str) -> list[int]:
    return [c["step"] for c in client.get(f"/jobs/{job}").json()["checkpoints"]]


@pytest.fixture(scope="module")
def store(app_settings: Settings) -> Iterator[JobStore]:
    with redis.Redis.from_url(app_settings.redis_url, decode_responses=True) as connection:
        yield JobStore(connection, lease_s=60, max_attempts=3)
        connection.flushdb()


@pytest.fixture(scope="module")
def volume(app_settings: Settings) -> Volume:
    return Volume(app_settings.data_dir)


@pytest.fixture(scope="module")
def trained(
    client: TestClient, app_settings: Settings, volume: Volume, store: JobStore
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A job that was stopped after some checkpoints, and what it answered while it ran."""
    job = submit(client)
    claim = store.claim(job)
    assert claim
    volume.attempt(job, 1).mkdir(parents=True)
    stop = StopRequest()

    def train() -> None:
        with LeaseKeeper(store, claim, stop, lease_s=60, grace_s=600) as lease:
            run_job(app_settings, volume, store, claim, lease)

    with ThreadPoolExecutor(1) as worker:
        run = worker.submit(train)
        try:
            while not (answer := ask(client, f"job:{job}")).is_success:
                assert answer.json()["code"] == "checkpoint_not_ready", answer.text
                assert not run.done(), run.result()
                time.sleep(0.2)
            status = client.get(f"/jobs/{job}").json()["status"]
            newest = steps(client, job)[0]
            while steps(client, job)[0] < newest + 6:
                assert not run.done(), run.result()
                time.sleep(0.1)
        finally:
            stop.make()
    assert isinstance(run.exception(), WorkerStoppingError)
    store.release(claim)
    yield job, {**answer.json(), "status": status}
    shutil.rmtree(volume.jobs / job, ignore_errors=True)


@pytest.fixture
def job(trained: tuple[str, dict[str, Any]]) -> str:
    return trained[0]


def test_while_it_trains(trained: tuple[str, dict[str, Any]]) -> None:
    job, answer = trained
    assert answer["status"] == "running"
    name, _, step = answer["adapter"].partition("@")
    assert name == f"job:{job}"
    assert int(step) % 3 == 0


def test_it_answers_as_it_would_once_published(
    client: TestClient, volume: Volume, job: str
) -> None:
    newest = steps(client, job)[0]
    answer = ask(client, f"job:{job}").json()
    assert answer["adapter"] == f"job:{job}@{newest}"
    assert answer["translatedText"] != ask(client, "base").json()["translatedText"]
    assert ask(client, f"job:{job}@{newest}").json() == answer
    found = find_checkpoints(volume, job)[0]
    assert (found.seal.source, found.seal.target) == ("en", "en-x-inverted")
    registry = AdapterRegistry(volume)
    with volume.staged_folder() as staged:
        version = registry.publish("copied", shutil.copytree(found.path, staged / "version"))
    published = ask(client, version.ref).json()
    shutil.rmtree(volume.adapters / "copied")
    assert published == answer | {"adapter": "copied@1"}


def test_it_streams(client: TestClient, job: str) -> None:
    whole = ask(client, f"job:{job}").json()
    *tokens, (kind, done) = events(ask(client, f"job:{job}", stream=True).text)
    assert (kind, done) == ("done", whole)
    assert "".join(data["text"] for _, data in tokens) == whole["translatedText"]


def test_the_job_lists_them(client: TestClient, job: str) -> None:
    shown = client.get(f"/jobs/{job}").json()
    assert [c["adapter"] for c in shown["checkpoints"]] == [
        f"job:{job}@{c['step']}" for c in shown["checkpoints"]
    ]
    assert len(shown["checkpoints"]) == 2
    listed = {j["id"]: j for j in client.get("/jobs").json()}
    assert listed[job]["checkpoints"] == shown["checkpoints"]


def test_openais_face(client: TestClient, job: str) -> None:
    shown = client.get(f"/jobs/{job}").json()
    page = client.get(f"/v1/fine_tuning/jobs/{job}/checkpoints").json()
    assert [c["step_number"] for c in page["data"]] == [c["step"] for c in shown["checkpoints"]]
    newest = page["data"][0]
    curve = shown["loss_curve"]["train"]
    losses = [p["loss"] for p in curve if p["step"] <= newest["step_number"]]
    assert newest["metrics"]["train_loss"] == losses[-1]
    assert newest["id"] == page["first_id"] == f"ftckpt-{job}-{newest['step_number']}"
    chat = {"messages": [{"role": "user", "content": TEXT}]}
    for model in (newest["fine_tuned_model_checkpoint"], f"job:{job}"):
        completion = client.post("/v1/chat/completions", json=chat | {"model": model}).json()
        assert completion["model"] == f"job:{job}@{newest['step_number']}"
        text = completion["choices"][0]["message"]["content"]
        assert text == ask(client, f"job:{job}").json()["translatedText"]
        assert client.get(f"/v1/models/{model}").json()["id"] == model
        refused = client.delete(f"/v1/models/{model}")
        assert refused.json()["error"]["code"] == "model_not_deletable"
    assert not any(m["id"].startswith("job:") for m in client.get("/v1/models").json()["data"])
    gone = client.post("/v1/chat/completions", json=chat | {"model": f"job:{job}@1"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


def test_it_is_pruned_just_before_it_is_read(
    client: TestClient, volume: Volume, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest that is left answers; a step that was asked for is said to have gone."""
    translator: Translator = client.app.state.services.serving.translator  # type: ignore[attr-defined]
    finder = translator._checkpoints
    newest, older = find_checkpoints(volume, job)
    find, aside = finder.find, volume.root / "aside"

    def find_and_prune(ref: str) -> AdapterVersion:
        found = find(ref)
        if found.path == pruned.path and pruned.path.exists():
            pruned.path.rename(aside)
        return found

    monkeypatch.setattr(finder, "find", find_and_prune)
    # Neither may be resident, or nothing would be read.
    for version in (newest, older):
        _touch_content(version.path)
    for pruned, left in ((newest, older), (older, newest)):
        body = problem(ask(client, pruned.ref), 404, "checkpoint_not_found")
        assert body["checkpoints"] == [left.version]
        assert job in body["detail"]
        aside.rename(pruned.path)
    pruned = newest
    assert ask(client, f"job:{job}").json()["adapter"] == older.ref
    aside.rename(pruned.path)
    assert ask(client, f"job:{job}", stream=True).status_code == 200


def _touch_content(folder: Path) -> None:
    """Gives a checkpoint another content hash of the same length."""
    seal = json.loads((folder / SEAL_FILE).read_text())
    old = seal["content_sha256"]
    text = (folder / SEAL_FILE).read_text().replace(old, f"{int(old[:8], 16) ^ 1:08x}{old[8:]}")
    (folder / SEAL_FILE).write_text(text)


def test_of_another_base_model(client: TestClient, volume: Volume, job: str) -> None:
    path = find_checkpoints(volume, job)[0].path / SEAL_FILE
    sound = path.read_text()
    path.write_text(sound.replace(json.loads(sound)["base_fingerprint"], "0" * 32))
    body = problem(ask(client, f"job:{job}"), 422, "adapter_for_other_base")
    assert f"checkpoint job:{job}@" in body["detail"]
    path.write_text(sound)


def test_with_none_to_ask(client: TestClient, store: JobStore, job: str) -> None:
    """The last of these tests: it ends the job."""
    waiting = submit(client, seed=1)
    body = problem(ask(client, f"job:{waiting}"), 409, "checkpoint_not_ready")
    assert body["detail"].endswith("The next one comes after step 3")
    problem(ask(client, f"job:{waiting}", stream=True), 409, "checkpoint_not_ready")
    problem(ask(client, "job:none"), 404, "job_not_found")
    before = ask(client, f"job:{job}").json()
    assert client.post(f"/jobs/{job}/cancel").json()["status"] == "cancelled"
    body = problem(ask(client, before["adapter"]), 409, "job_ended")
    assert "published no version" in body["detail"]
    assert steps(client, job) == []
