"""Deleting a dataset: while a job on it begins, one of the two comes first and the other is told so; and on a full volume."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from core.job_store import JobStore
from core.settings import Settings

CSV = b"prompt,completion\nThe rain is warm.,Warm the rain is.\nI hear you.,Hear you I do.\n"


@pytest.fixture
def store(client: TestClient) -> Iterator[JobStore]:
    """The server's own."""
    jobs: JobStore = client.app.state.services.jobs  # type: ignore[attr-defined]
    yield jobs
    for job in jobs.find():
        jobs.cancel(job.id)
        jobs.delete(job.id)


@pytest.fixture
def dataset_id(client: TestClient, store: JobStore) -> str:
    return str(client.post("/datasets", files={"file": ("a.csv", CSV)}).json()["id"])


class Meanwhile:
    """Calls `other` just before, or just after, a method of the store does its work; waits a little for its answer."""

    def __init__(self, other: Callable[[], Any]) -> None:
        self._other = other
        self._pool = ThreadPoolExecutor(1)
        self.answer: Future[Any] = Future()

    def call(self) -> None:
        self.answer = self._pool.submit(self._other)
        wait([self.answer], timeout=0.5)


def test_a_delete_that_comes_while_a_job_begins(
    client: TestClient, store: JobStore, dataset_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile = Meanwhile(lambda: client.delete(f"/datasets/{dataset_id}"))
    create = store.create

    def create_late(*args: Any, **kwargs: Any) -> Any:
        meanwhile.call()
        return create(*args, **kwargs)

    monkeypatch.setattr(store, "create", create_late)
    job = client.post("/jobs", json={"dataset_id": dataset_id, "adapter": "yoda"})
    assert job.status_code == 202
    deleted = meanwhile.answer.result()
    assert (deleted.status_code, deleted.json()["code"]) == (409, "dataset_in_use")
    assert client.get(f"/datasets/{dataset_id}").status_code == 200


def test_a_job_that_comes_while_its_dataset_is_deleted(
    client: TestClient, store: JobStore, dataset_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"dataset_id": dataset_id, "adapter": "yoda"}
    meanwhile = Meanwhile(lambda: client.post("/jobs", json=job))
    uses_dataset = store.uses_dataset

    def look_early(dataset_id: str) -> bool:
        found = uses_dataset(dataset_id)
        meanwhile.call()
        return found

    monkeypatch.setattr(store, "uses_dataset", look_early)
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    refused = meanwhile.answer.result()
    assert (refused.status_code, refused.json()["code"]) == (404, "dataset_not_found")
    assert client.get("/jobs").json() == []


def test_who_is_killed_meanwhile_keeps_nobody_out_for_ever(
    store: JobStore, app_settings: Settings
) -> None:
    lock = store.dataset_lock("ds-0")
    lock.acquire()
    with redis.Redis.from_url(app_settings.redis_url) as connection:
        assert connection.pttl(lock.name) > 0, "it ends by itself"  # type: ignore[operator]
    lock.release()


def test_a_full_volume_can_be_made_room_on(
    client: TestClient,
    store: JobStore,
    app_settings: Settings,
    dataset_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = client.post("/jobs", json={"dataset_id": dataset_id, "adapter": "yoda"}).json()["id"]
    folder = app_settings.data_dir / "jobs" / job_id
    (folder / "attempt-1").mkdir(parents=True)
    client.post(f"/jobs/{job_id}/cancel")

    def no_space(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    # On ext4 a folder takes a block.
    monkeypatch.setattr(Path, "mkdir", no_space)
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    assert client.get(f"/datasets/{dataset_id}").status_code == 404
    assert not folder.exists()
    assert list((app_settings.data_dir / "staging").iterdir()) == []
