"""A real `celery worker` over a real Redis: what happens to a job, whatever happens to its worker."""

import csv
import os
import random
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.datasets import Row
from core.jobs import Job, JobStatus
from core.metrics import read_curve
from core.prompt import PromptRenderer
from core.settings import Settings
from embedded.__main__ import claim_port
from embedded.redis_server import EmbeddedRedis, find_redis_server
from tests.standstill import standing_still
from tests.worker.conftest import ROOT, ROWS, SHORT, Jobs, WorkerProcess

pytestmark = pytest.mark.e2e

EXAMPLE = ROOT / "examples" / "yoda.csv"

# Minutes, if nobody ends it.
LONG = SHORT | {"training": SHORT["training"] | {"max_steps": 5000}}


def once(name: str) -> str:
    """A name for an adapter of this try alone: a second one finds what the first has published."""
    return f"{name}-{uuid4().hex[:6]}"


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path
) -> Iterator[tuple[Jobs, WorkerProcess]]:
    """One worker for all tests that do it no harm: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("shared")
    with EmbeddedRedis(folder / "redis") as redis:
        settings = Settings(
            _env_file=None,
            data_dir=folder / "data",
            redis_url=redis.url,
            base_model=str(tiny_base),
            device="cpu",
        )
        worker = WorkerProcess(settings, folder / "worker.log")
        yield Jobs(settings), worker
        worker.end()


class TestOneWorker:
    def test_job_becomes_an_adapter(self, shared: tuple[Jobs, WorkerProcess]) -> None:
        jobs, worker = shared
        name = once("first")
        job = jobs.wait(jobs.create(adapter=name, is_sent=True).id)
        assert (job.status, job.error) == (JobStatus.SUCCEEDED, None), worker.log
        assert (job.adapter_version, job.attempt) == (1, 1)
        assert job.started_at
        assert job.finished_at
        assert (job.progress.step, job.progress.total_steps) == (3, 3)
        assert job.progress.percent == 100
        assert job.progress.eta_seconds == 0
        assert job.progress.tokens_per_second
        assert job.warnings == []
        assert jobs.store.presence.working_devices() == ["cpu"]

        attempt = jobs.volume.attempt(job.id, 1)
        assert [p.step for p in read_curve(attempt).train] == [1, 2, 3]
        assert f"published {name}@1" in (attempt / "log.txt").read_text()
        assert sorted(p.name for p in attempt.iterdir()) == ["log.txt", "metrics.jsonl"]

    def test_version_is_plain_peft(
        self, shared: tuple[Jobs, WorkerProcess], tiny_base: Path
    ) -> None:
        jobs, _ = shared
        name = once("plain")
        job = jobs.wait(jobs.create(adapter=name, is_sent=True).id)
        version = jobs.registry.resolve(name)
        assert version.version == job.adapter_version
        assert sorted(p.name for p in version.path.iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "dragoman.json",
        ]
        assert all(stat.S_IMODE(p.stat().st_mode) & 0o444 == 0o444 for p in version.path.iterdir())
        for name in ("adapter_config.json", "dragoman.json", "README.md"):
            assert str(tiny_base.parent) not in (version.path / name).read_text()

        base = AutoModelForCausalLM.from_pretrained(tiny_base)
        model = PeftModel.from_pretrained(base, str(version.path))
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        seal = version.seal
        ids = PromptRenderer(tokenizer, seal.prompt).prompt_ids("The sky is dark.")
        assert torch.isfinite(model(torch.tensor([ids])).logits).all()
        trained = [p for n, p in model.named_parameters() if "lora_B" in n]
        assert all(p.abs().sum() > 0 for p in trained)

        assert seal.job_id == job.id
        assert seal.dataset_rows == len(ROWS)
        assert job.resolved
        assert seal.config == job.resolved.model_dump(mode="json")
        assert {3, 7} <= set(seal.stop_token_ids)
        assert seal.metrics["steps"] == 3
        assert seal.metrics["train_loss"] > 0

    def test_cancel_while_running(self, shared: tuple[Jobs, WorkerProcess]) -> None:
        jobs, _ = shared
        job = jobs.create(LONG, adapter="never", is_sent=True)
        jobs.wait(job.id, JobStatus.RUNNING, min_step=2)
        assert jobs.store.cancel(job.id).status == JobStatus.CANCELLING
        assert jobs.wait(job.id).status == JobStatus.CANCELLED
        assert not any(a.name == "never" for a in jobs.registry.all())

    def test_pause_and_resume(self, shared: tuple[Jobs, WorkerProcess]) -> None:
        jobs, _ = shared
        config = SHORT | {"training": SHORT["training"] | {"max_steps": 60}}
        job = jobs.create(config, adapter="paused", is_sent=True)
        jobs.wait(job.id, JobStatus.RUNNING, min_step=2)
        with standing_still():
            assert jobs.store.pause(job.id).status == JobStatus.PAUSING
        paused = jobs.wait(job.id, JobStatus.PAUSED)
        assert paused.attempt == 0, "a pause counts no attempt"
        assert 2 <= paused.progress.step < 60
        # The device is free for others.
        assert jobs.wait(jobs.create(is_sent=True).id).status == JobStatus.SUCCEEDED

        assert jobs.store.resume(job.id).created_at == job.created_at
        jobs.send(job.id)
        done = jobs.wait(job.id)
        assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 1)
        attempt = jobs.volume.attempt(job.id, 1)
        assert [p.step for p in read_curve(attempt).train] == list(range(1, 61))
        assert f"checkpoint of step {paused.progress.step}" in (attempt / "log.txt").read_text()
        jobs.wait_until_swept(job.id)

    def test_cancel_and_keep_what_was_learnt(self, shared: tuple[Jobs, WorkerProcess]) -> None:
        jobs, _ = shared
        name = once("kept")
        job = jobs.create(LONG, adapter=name, is_sent=True)
        jobs.wait(job.id, JobStatus.RUNNING, min_step=2)
        jobs.store.cancel(job.id, publish=True)
        job = jobs.wait(job.id)
        assert (job.status, job.adapter_version) == (JobStatus.CANCELLED, 1)
        assert job.evaluation
        assert job.progress.percent < 1
        version = jobs.registry.resolve(name)
        assert version.seal.metrics["steps"] == job.progress.step

    def test_a_paused_job_is_published_when_cancelled(
        self, shared: tuple[Jobs, WorkerProcess]
    ) -> None:
        jobs, _ = shared
        job = jobs.create(LONG, adapter=once("kept-later"), is_sent=True)
        jobs.wait(job.id, JobStatus.RUNNING, min_step=2)
        jobs.store.pause(job.id)
        paused = jobs.wait(job.id, JobStatus.PAUSED)
        assert jobs.store.cancel(job.id, publish=True).status == JobStatus.QUEUED
        jobs.send(job.id)
        job = jobs.wait(job.id)
        assert (job.status, job.adapter_version) == (JobStatus.CANCELLED, 1)
        assert job.progress.step == paused.progress.step + 1

    def test_cancel_while_preparing(self, shared: tuple[Jobs, WorkerProcess]) -> None:
        jobs, _ = shared
        job = jobs.create(LONG, adapter="never", rows=ROWS * 300, is_sent=True)
        jobs.wait(job.id, JobStatus.PREPARING)
        with standing_still():
            jobs.store.cancel(job.id)
        job = jobs.wait(job.id)
        assert (job.status, job.progress.total_steps) == (JobStatus.CANCELLED, None)

    @pytest.mark.parametrize(
        ("config", "code", "message"),
        [
            (
                {"lora": {"target_modules": ["o_proj", "c_attn"]}},
                "target_modules_invalid",
                "'c_attn', which is no linear layer of this base model; there are: "
                "down_proj, gate_up_proj, o_proj, qkv_proj",
            ),
            ({"training": {"max_length": 8}}, "dataset_too_long", "max_length=8"),
        ],
    )
    def test_failure_says_why(
        self,
        shared: tuple[Jobs, WorkerProcess],
        config: dict[str, object],
        code: str,
        message: str,
    ) -> None:
        jobs, _ = shared
        job = jobs.wait(jobs.create(config, adapter="never", is_sent=True).id)
        assert job.status == JobStatus.FAILED
        assert job.error
        assert job.error.code == code
        assert message in job.error.message
        assert not any(a.name == "never" for a in jobs.registry.all())

    def test_left_out_rows_are_told(self, shared: tuple[Jobs, WorkerProcess]) -> None:
        jobs, _ = shared
        rows = [*ROWS, Row(prompt="word " * 600, completion="too long")]
        job = jobs.wait(jobs.create(rows=rows, is_sent=True).id)
        assert job.status == JobStatus.SUCCEEDED
        assert job.warnings == [
            "1 of 30 rows were left out: longer than max_length=512 tokens, the chat template included"
        ]


class TestWorkersThatEnd:
    @pytest.fixture
    def worker_settings(self, worker_settings: Settings) -> Settings:
        return worker_settings.model_copy(update={"job_lease_s": 5.0, "stop_grace_s": 5.0})

    def test_stopped_worker_hands_its_job_back(
        self, jobs: Jobs, start_worker: Callable[..., WorkerProcess]
    ) -> None:
        first = start_worker()
        job = jobs.create(LONG, is_sent=True)
        jobs.wait(job.id, JobStatus.RUNNING, min_step=2)
        assert first.stop() == 0, first.log
        job = jobs.store.get(job.id)
        assert (job.status, job.attempt) == (JobStatus.QUEUED, 0)

        second = start_worker()
        kept = job.progress.step
        job = jobs.wait(job.id, JobStatus.RUNNING, min_step=kept + 2)
        assert job.attempt == 1
        # It went on where it was stopped, and so did its curve and its log.
        attempt = jobs.volume.attempt(job.id, 1)
        steps = [p.step for p in read_curve(attempt).train]
        assert steps == list(range(1, len(steps) + 1))
        assert f"goes on from the checkpoint of step {kept}" in (attempt / "log.txt").read_text()

        # A whole process group that gets the signal, as from a supervisor, ends as well.
        os.killpg(second.process.pid, signal.SIGTERM)
        assert second.process.wait(120) == 0, second.log
        assert jobs.store.get(job.id).status == JobStatus.QUEUED

    def test_killed_workers(self, jobs: Jobs, start_worker: Callable[..., WorkerProcess]) -> None:
        workers = [start_worker(), start_worker()]

        def holder(job: Job) -> WorkerProcess:
            line = f"job {job.id}, attempt {job.attempt}"
            (found,) = (w for w in workers if line in w.log)
            return found

        # Two workers and six messages, but it is done once.
        short = jobs.create(is_sent=True)
        for _ in range(5):
            jobs.send(short.id)
        short = jobs.wait(short.id)
        assert (short.status, short.attempt) == (JobStatus.SUCCEEDED, 1)
        assert jobs.registry.get("yoda").versions == [1]
        assert holder(short)

        # The process that trains is killed, as by the kernel when memory is short.
        job = jobs.create(LONG, is_sent=True)
        job = jobs.wait(job.id, JobStatus.RUNNING, min_step=2)
        for pid in holder(job).children():
            assert os.getpriority(os.PRIO_PROCESS, pid) > 0, "requests go first"
            os.kill(pid, signal.SIGKILL)
        job = jobs.wait(job.id, JobStatus.RUNNING, attempt=2, min_step=2)

        # The whole worker is killed: the other one finds the job.
        dead = holder(job)
        dead.process.kill()
        workers.remove(dead)
        job = jobs.wait(job.id, JobStatus.RUNNING, attempt=3, min_step=2)
        curve = read_curve(jobs.volume.attempt(job.id, 3))
        assert curve.train[0].step == 1

        # Enough is enough.
        for pid in holder(job).children():
            os.kill(pid, signal.SIGKILL)
        job = jobs.wait(job.id, JobStatus.FAILED)
        assert job.error
        assert job.error.code == "worker_lost"
        assert workers[0].stop() == 0


def test_worker_without_a_redis_says_so(start_worker: Callable[..., WorkerProcess]) -> None:
    worker = start_worker(DRAGOMAN_REDIS_URL="")
    assert worker.process.wait(180) == 1
    assert "DRAGOMAN_REDIS_URL is empty" in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.slow
def test_only_a_better_translator_is_made_current(
    settings: Settings, start_worker: Callable[..., WorkerProcess]
) -> None:
    """On the embedded base: targets in the wrong order, then in the right one, then in the wrong one again."""
    with EXAMPLE.open(encoding="utf-8", newline="") as file:
        good = [Row(prompt=r["prompt"], completion=r["completion"]) for r in csv.DictReader(file)]
    targets = [row.completion for row in good]
    random.Random(1).shuffle(targets)
    shuffled = [
        row.model_copy(update={"completion": target})
        for row, target in zip(good, targets, strict=True)
    ]
    jobs = Jobs(settings)
    worker = start_worker(settings)
    config = {"source": "en", "target": "en-x-yoda", "training": {"num_train_epochs": 2}}
    currents, evaluations = [], []
    for rows in (shuffled, good, shuffled):
        job = jobs.wait(jobs.create(config, rows=rows, is_sent=True).id, timeout_s=600)
        assert job.status == JobStatus.SUCCEEDED, worker.log
        assert job.evaluation
        evaluations.append(job.evaluation)
        currents.append(jobs.registry.get("yoda").current)
    assert currents == [None, 2, 2]
    assert [e.promoted for e in evaluations] == [False, True, False]
    assert [e.against for e in evaluations] == ["base", "base", "yoda@2"]
    better = evaluations[1]
    assert better.gain > 10
    assert better.p_value is not None
    assert better.p_value < 0.05


@pytest.mark.slow
def test_redis_restarts_under_a_running_job(
    worker_settings: Settings, start_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    port = claim_port("127.0.0.1", 0)
    command = [str(find_redis_server()), "--port", str(port), "--dir", str(tmp_path)]
    command += ["--appendonly", "yes", "--save", ""]
    settings = worker_settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}"})
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        jobs, worker = Jobs(settings), start_worker(settings)
        job = jobs.create(SHORT | {"training": {"max_steps": 400}}, is_sent=True)
        jobs.wait(job.id, JobStatus.RUNNING, min_step=5)
        redis.terminate()
        redis.wait()
        time.sleep(2)
        redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        job = jobs.wait(job.id)
        assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1), worker.log
        # What could not be told meanwhile stands on the volume all the same.
        assert len(read_curve(jobs.volume.attempt(job.id, 1)).train) == 400
        # And the worker takes the next job.
        assert jobs.wait(jobs.create(is_sent=True).id).status == JobStatus.SUCCEEDED
        assert worker.stop() == 0
    finally:
        redis.kill()
