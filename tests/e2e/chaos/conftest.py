"""How much chaos: a little in `make test`, much in `make chaos`, which sets CHAOS=long."""

import os
import random
from typing import Any

import pytest

from core.settings import Settings
from tests.worker.conftest import (
    SHORT,
    Jobs,
    bases,
    build,
    jobs,
    start_worker,
    tiny_base,
)

__all__ = ["bases", "build", "jobs", "start_worker", "tiny_base"]

IS_LONG = os.environ.get("CHAOS") == "long"


def faults(short: int, long: int) -> int:
    return long if IS_LONG else short


def config(num_steps: int, **training: Any) -> dict[str, Any]:
    """Judged and published; with dropout, so that random numbers matter."""
    asked = SHORT["training"] | {"max_steps": num_steps, "save_steps": 5, **training}
    return SHORT | {"lora": {"r": 4, "lora_dropout": 0.1}, "training": asked}


@pytest.fixture
def worker_settings(settings: Settings, tiny_base: Any) -> Settings:
    return settings.model_copy(
        update={
            "base_model": str(tiny_base),
            "device": "cpu",
            "job_lease_s": 3.0,
            "stop_grace_s": 5.0,
            "max_attempts": 200,
        }
    )


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    print(f"\nCHAOS_SEED={seed}")
    return random.Random(seed)


def wait_for(jobs: Jobs, ids: list[str], timeout_s: float = 600) -> None:
    for job_id in ids:
        jobs.wait(job_id, timeout_s=timeout_s)
