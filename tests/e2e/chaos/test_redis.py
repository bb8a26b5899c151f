"""Redis goes away and comes back, softly and hard, while jobs queue and run."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.jobs import JobStatus
from core.settings import Settings
from tests.e2e.chaos.conftest import config, faults, wait_for
from tests.e2e.chaos.processes import RedisProcess
from tests.e2e.chaos.tally import Tally
from tests.worker.conftest import Jobs, WorkerProcess

pytestmark = pytest.mark.e2e


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis")
    process.start()
    yield process
    process.stop(hard=True)


@pytest.fixture
def settings(settings: Settings, redis_process: RedisProcess) -> Settings:
    return settings.model_copy(update={"redis_url": redis_process.url})


def test_restarts_under_load(
    redis_process: RedisProcess,
    jobs: Jobs,
    start_worker: Callable[..., WorkerProcess],
    chance: random.Random,
) -> None:
    num_restarts = faults(2, 10)
    worker = start_worker()
    ids = [jobs.create(config(60), is_sent=True).id for _ in range(faults(2, 10))]
    jobs.wait(ids[0], JobStatus.RUNNING, min_step=3, timeout_s=300)
    for number in range(num_restarts):
        redis_process.stop(hard=number % 2 == 1)
        time.sleep(chance.uniform(0.0, 2.0))
        redis_process.start()
        time.sleep(chance.uniform(1.0, 4.0))
    wait_for(jobs, ids)
    Tally(jobs, ids).check("Redis restarted", num_restarts)
    assert worker.stop() == 0
