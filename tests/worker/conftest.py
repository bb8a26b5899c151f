"""Jobs on a real volume and a real Redis; worker processes as they are started in production."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from core.adapters import AdapterRegistry
from core.datasets import ROWS_FILE, Dataset, DatasetReport, DatasetStore, Row, RowWriter
from core.jobs import ENDED, Job, JobStatus
from core.queue import TRAINING_QUEUE, create_queue, send_training
from core.settings import Settings
from core.training_config import JobConfig
from core.volume import CHECKPOINTS, Volume
from tests.tiny_models import make_tiny_model
from worker.tasks import connect_store

ROOT = Path(__file__).resolve().parents[2]

ROWS = [
    Row(prompt=f"The {noun} is {adjective}.", completion=f"{adjective.title()}, the {noun} is.")
    for noun in ("sky", "sea", "house", "road", "night", "king", "river", "old tree")
    for adjective in ("cold", "long", "dark", "very quiet")
]
# A few seconds even on a busy machine. So little training makes no translator better.
SHORT: dict[str, Any] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "evaluation": {"promote": "always"},
    "training": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Phi-3-shaped base that the worker has to quantise itself."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-phi3"), "phi3")


@pytest.fixture
def worker_settings(settings: Settings, tiny_base: Path) -> Settings:
    return settings.model_copy(update={"base_model": str(tiny_base), "device": "cpu"})


class Jobs:
    """What the server does: writes a dataset, a job's record, and then sends its id."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.volume = Volume(settings.data_dir)
        self.volume.create()
        self.store = connect_store(settings)
        self.registry = AdapterRegistry(self.volume)
        self._queue = create_queue(settings)

    def create(
        self,
        config: dict[str, Any] | None = None,
        *,
        rows: Sequence[Row] = ROWS,
        adapter: str = "yoda",
        is_sent: bool = False,
    ) -> Job:
        job = Job(
            id=uuid4().hex,
            adapter=adapter,
            dataset_id=self._save(rows).id,
            config=JobConfig.model_validate(SHORT if config is None else config),
            created_at=datetime.now(UTC),
        )
        self.store.create(job, max_queued=100)
        if is_sent:
            self.send(job.id)
        return job

    def send(self, job_id: str) -> None:
        send_training(self._queue, job_id)
        self.store.mark_sent(job_id)

    def wait(
        self,
        job_id: str,
        *statuses: JobStatus,
        attempt: int = 0,
        min_step: int = 0,
        timeout_s: float = 240,
    ) -> Job:
        """The job once it is in one of `statuses` (default: ended), at least that far."""
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.store.get(job_id)
            has_come = job.attempt >= attempt and job.progress.step >= min_step
            if job.status in (statuses or ENDED) and has_come:
                return job
            if job.status in ENDED or time.monotonic() > deadline:
                raise AssertionError(f"{job.status} at step {job.progress.step}: {job.error}")
            time.sleep(0.05)

    def wait_until_swept(self, job_id: str) -> None:
        """A job's checkpoints go just after it has ended."""
        deadline = time.monotonic() + 60
        while (self.volume.jobs / job_id / CHECKPOINTS).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _save(self, rows: Sequence[Row]) -> Dataset:
        dataset = Dataset(
            id=uuid4().hex,
            name="pairs.csv",
            format="csv",
            rows=len(rows),
            columns=["prompt", "completion"],
            mapping={"prompt": "prompt", "completion": "completion"},
            sha256=uuid4().hex,
            created_at=datetime.now(UTC),
            report=DatasetReport(),
            preview=[],
        )
        with self.volume.staged_folder() as staged:
            with RowWriter(staged / ROWS_FILE) as writer:
                writer.write(rows)
            return DatasetStore(self.volume).save(dataset, staged)


@pytest.fixture
def jobs(worker_settings: Settings) -> Jobs:
    return Jobs(worker_settings)


class WorkerProcess:
    """A Celery worker, started as `make serve` starts it."""

    def __init__(self, settings: Settings, log: Path, **env: str) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "--app", "worker.main:queue", "worker"),
                    *("--queues", TRAINING_QUEUE, "--concurrency", "1", "--loglevel", "INFO"),
                    *("--without-gossip", "--without-mingle"),
                ],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ
                | {
                    "DRAGOMAN_REDIS_URL": settings.redis_url,
                    "DRAGOMAN_DATA_DIR": str(settings.data_dir),
                    "DRAGOMAN_BASE_MODEL": settings.base_model,
                    "DRAGOMAN_DEVICE": "cpu",
                    "DRAGOMAN_JOB_LEASE_S": str(settings.job_lease_s),
                    "DRAGOMAN_STOP_GRACE_S": str(settings.stop_grace_s),
                    "DRAGOMAN_MAX_ATTEMPTS": str(settings.max_attempts),
                    "OMP_NUM_THREADS": "1",
                }
                | env,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self, timeout_s: float = 120) -> int:
        """SIGTERM, as a deploy does; the exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def children(self) -> list[int]:
        """Process ids of the pool."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(pid) for pid in listed.stdout.split()]

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def start_worker(
    worker_settings: Settings, tmp_path: Path
) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers on demand; the test's end ends them."""
    with ExitStack() as stack:

        def start(settings: Settings = worker_settings, **env: str) -> WorkerProcess:
            worker = WorkerProcess(settings, tmp_path / f"worker-{uuid4().hex[:8]}.log", **env)
            stack.callback(worker.end)
            return worker

        yield start


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """See tests.worker.trainers, which imports the training stack."""
    from tests.worker.trainers import make_bases

    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def build(bases: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """build(base, eval_rows=…, **config) -> a trainer whose attempt's folder is `tmp_path`."""
    from tests.worker.trainers import make_trainer

    def build(
        base: str = "phi3",
        *,
        rows: list[Row] = ROWS,
        eval_rows: list[Row] | None = None,
        callbacks: list[Any] | None = None,
        **config: Any,
    ) -> Any:
        return make_trainer(
            bases[base], tmp_path, config, rows=rows, eval_rows=eval_rows, callbacks=callbacks
        )

    return build
