"""One device for both: with DRAGOMAN_DEVICE_POLICY=wait, training takes its turn when no request runs."""

import logging
import time
from typing import Any

from redis import RedisError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.job_store import JobStore
from worker.lease import LeaseKeeper

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.05


class ServingFirst(TrainerCallback):  # type: ignore[misc]
    """Holds each forward and backward pass until the server is idle, or somebody wants to interrupt the job."""

    def __init__(self, store: JobStore, lease: LeaseKeeper) -> None:
        self._store = store
        self._lease = lease

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._wait()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._wait()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._wait()

    def _wait(self) -> None:
        while self._lease.interruption is None and not self._lease.ends_early:
            try:
                if not self._store.presence.is_serving():
                    return
            except RedisError as error:
                logger.warning("cannot ask whether requests run: %s", error)
                return
            time.sleep(_INTERVAL_S)
