"""train() in this process, against a real Redis: how each end of an attempt is written down."""

import errno
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.adapter_version import SEAL_FILE
from core.datasets import ROWS_FILE
from core.errors import InvalidError
from core.jobs import JobStatus
from core.settings import Settings
from tests.tiny_models import make_tiny_model
from tests.worker.conftest import SHORT, Jobs
from worker.publisher import public_name
from worker.tasks import explain, train


def test_second_delivery_finds_nothing(jobs: Jobs, worker_settings: Settings) -> None:
    job = jobs.create()
    for _ in range(2):
        train(worker_settings)
    job = jobs.store.get(job.id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    assert jobs.registry.get("yoda").versions == [1]


def test_nothing_to_do(jobs: Jobs, worker_settings: Settings) -> None:
    train(worker_settings)
    assert jobs.store.find() == []


def test_versions_count_up_and_the_newest_is_current(jobs: Jobs, worker_settings: Settings) -> None:
    for _ in range(2):
        jobs.create()
        train(worker_settings)
    adapter = jobs.registry.get("yoda")
    assert (adapter.versions, adapter.current) == ([1, 2], 2)

    # A version that somebody damaged stands in nobody's way.
    (jobs.registry.resolve("yoda@2").path / SEAL_FILE).write_text("{}")
    jobs.create()
    train(worker_settings)
    assert jobs.registry.get("yoda").current == 3


def test_published_but_not_finished(jobs: Jobs, worker_settings: Settings) -> None:
    """The worker died after it had published: the next attempt takes what is there, and trains nothing."""
    job = jobs.create()
    train(worker_settings)
    # The same job again, as if its end had not been written.
    again = job.model_copy(update={"created_at": datetime.now(UTC)})
    jobs.store.create(again, max_queued=10)
    train(worker_settings)
    job = jobs.store.get(job.id)
    assert (job.status, job.adapter_version, job.attempt) == (JobStatus.SUCCEEDED, 1, 2)
    assert jobs.registry.get("yoda").versions == [1]


def test_dataset_that_is_gone(jobs: Jobs, worker_settings: Settings) -> None:
    job = jobs.create()
    shutil.rmtree(jobs.volume.datasets / job.dataset_id)
    train(worker_settings)
    error = jobs.store.get(job.id).error
    assert error
    assert error.code == "dataset_not_found"


def test_unexpected_failure(jobs: Jobs, worker_settings: Settings) -> None:
    job = jobs.create()
    (jobs.volume.datasets / job.dataset_id / ROWS_FILE).write_text("no rows")
    train(worker_settings)
    job = jobs.store.get(job.id)
    assert job.status == JobStatus.FAILED
    assert job.error
    assert job.error.code == "internal_error"
    assert "ArrowInvalid" in job.error.message
    log = (jobs.volume.attempt(job.id, 1) / "log.txt").read_text()
    assert "Traceback (most recent call last)" in log


def test_base_that_is_no_number(jobs: Jobs, worker_settings: Settings, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "broken", seed=1)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    job = jobs.create()
    train(worker_settings.model_copy(update={"base_model": str(base)}))
    job = jobs.store.get(job.id)
    assert job.error
    assert job.error.code == "training_diverged"
    assert jobs.registry.all() == []
    assert [p.name for p in jobs.volume.attempt(job.id, 1).iterdir()] == ["log.txt"]


def test_volume_that_cannot_be_written(jobs: Jobs, worker_settings: Settings) -> None:
    job = jobs.create()
    shutil.rmtree(jobs.volume.jobs)
    jobs.volume.jobs.write_text("not a folder")
    train(worker_settings)
    job = jobs.store.get(job.id)
    assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, "internal_error")


def test_cancelled_before_it_began(jobs: Jobs, worker_settings: Settings) -> None:
    job = jobs.create()
    jobs.store.cancel(job.id)
    train(worker_settings)
    job = jobs.store.get(job.id)
    assert (job.status, job.attempt) == (JobStatus.CANCELLED, 0)


def test_job_that_is_taken_away(jobs: Jobs, worker_settings: Settings) -> None:
    """A worker that was given up writes nothing more: no status, no version."""
    config = SHORT | {"training": SHORT["training"] | {"max_steps": 5000}}
    job = jobs.create(config)
    worker = threading.Thread(target=train, args=(worker_settings,))
    worker.start()
    jobs.wait(job.id, JobStatus.RUNNING, min_step=2)
    jobs.store._redis.hincrby(f"dragoman:job:{job.id}", "fence", 1)
    worker.join(120)
    assert not worker.is_alive()
    assert jobs.store.get(job.id).status == JobStatus.RUNNING
    assert not list(jobs.volume.adapters.glob(f"**/{SEAL_FILE}"))


def test_what_owners_are_told() -> None:
    def code(error: Exception) -> str:
        return explain(error).code

    assert code(InvalidError("no", code="dataset_too_long")) == "dataset_too_long"
    assert code(torch.OutOfMemoryError("CUDA out of memory")) == "out_of_memory"
    assert code(MemoryError()) == "out_of_memory"
    assert code(OSError(errno.ENOSPC, "No space left on device")) == "volume_full"
    assert code(OSError(errno.EROFS, "Read-only file system")) == "volume_read_only"
    assert code(OSError(errno.EIO, "Input/output error")) == "volume_unavailable"
    assert code(RuntimeError("secret")) == "internal_error"
    assert "secret" not in explain(RuntimeError("secret")).message
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert code(caught.value) == "out_of_memory"
    assert "per_device_train_batch_size" in explain(caught.value).message
    evaluation = RuntimeError("Evaluation hit an out-of-memory error.")
    evaluation.__cause__ = caught.value
    assert code(evaluation) == "out_of_memory"


def test_published_name_of_the_base(tmp_path: Path) -> None:
    assert public_name("") == "dragoman-embedded-base"
    assert public_name("unsloth/Llama-3.2-1B-Instruct") == "unsloth/Llama-3.2-1B-Instruct"
    (tmp_path / "my-base").mkdir()
    assert public_name(str(tmp_path / "my-base")) == "my-base"
