"""DRAGOMAN_DEVICE_POLICY=wait: a step begins when no request runs."""

import threading
import time
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.worker.conftest import Jobs
from worker.lease import LeaseKeeper, StopRequest
from worker.turns import ServingFirst


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("hook", ["on_step_begin", "on_substep_end", "on_prediction_step"])
def test_waits_while_requests_run(jobs: Jobs, args: TrainingArguments, hook: str) -> None:
    claim = jobs.store.claim(jobs.create().id)
    assert claim
    stop = StopRequest()
    with LeaseKeeper(jobs.store, claim, stop, lease_s=60, grace_s=60) as lease:
        turns = ServingFirst(jobs.store, lease)
        step = lambda: getattr(turns, hook)(args, TrainerState(), TrainerControl())  # noqa: E731
        step()  # nothing runs: at once

        jobs.store.presence.tell_serving(0.5)
        step()
        assert not jobs.store.presence.is_serving()

        jobs.store.presence.tell_serving(600)
        waiting = threading.Thread(target=step)
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        stop.make()  # a worker that must go does not wait for its turn
        waiting.join(60)
        assert not waiting.is_alive()
