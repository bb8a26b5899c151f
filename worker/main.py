"""The Celery entry point: `celery --app worker.main:queue worker --concurrency 1`."""

import gc
import importlib
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from billiard import active_children
from celery import Celery
from celery.signals import celeryd_after_setup, worker_ready, worker_shutting_down
from kombu.exceptions import OperationalError
from redis import RedisError

from core.errors import NotFoundError
from core.job_store import JobStore
from core.queue import TRAIN_TASK, create_queue, queue_name, send_training
from core.settings import Settings
from core.volume import Volume
from worker.leftovers import sweep_leftovers
from worker.tasks import connect_store, train

logger = logging.getLogger(__name__)

_LONGEST_SWEEP_S = 10.0
_stopping = threading.Event()
_VOLUME_SWEEP_S = 600.0
_PRESENCE_S = 5.0  # between two signs of life; three may get lost
# Of a job on a CPU: requests on the same machine go first. See docs/decisions.md for what they feel.
_NICENESS = 15


def create_worker(settings: Settings) -> Celery:
    """The queue with the one task that this process does, one at a time."""
    if not settings.redis_url:
        sys.exit("DRAGOMAN_REDIS_URL is empty; `make serve` starts a Redis and sets it")
    queue = create_queue(settings)
    queue.conf.update(
        worker_concurrency=1,
        worker_max_tasks_per_child=1,  # a process per job: its memory goes back, whatever happened
        broker_connection_max_retries=None,
    )

    device = "cuda" if settings.device != "cpu" and torch.cuda.device_count() else "cpu"

    @queue.task(name=TRAIN_TASK)  # type: ignore[untyped-decorator]
    def _train(job_id: str) -> None:
        # The message says that there is a job more, and not which one is next: priorities and pauses are records.
        # The job that a stopping worker has handed back may reach it again, in a child that it forks then.
        if not _stopping.is_set():
            if device == "cpu":
                _stand_back()
            train(settings, device)

    store, volume = connect_store(settings), Volume(settings.data_dir)

    def on_setup(instance: Any, **_: Any) -> None:
        instance.app.amqp.queues.select_add(queue_name(device))

    def on_ready(sender: Any, **_: Any) -> None:
        show_presence(store, device)
        sweep_jobs(queue, store)
        sweep_volume(volume, store)
        repeatedly = sender.timer.call_repeatedly
        repeatedly(_PRESENCE_S, show_presence, (store, device))
        repeatedly(min(settings.job_lease_s / 2, _LONGEST_SWEEP_S), sweep_jobs, (queue, store))
        repeatedly(_VOLUME_SWEEP_S, sweep_volume, (volume, store))

    celeryd_after_setup.connect(on_setup, weak=False)
    worker_ready.connect(on_ready, weak=False)
    worker_shutting_down.connect(_stop_children, weak=False)
    return queue


def _stand_back() -> None:
    """Lowers the priority of this child, which does one job, in favour of what serves requests on the same machine."""
    os.nice(_NICENESS)
    # Where Linux groups processes by session, a process' niceness counts within its group alone.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICENESS))


def show_presence(store: JobStore, device: str) -> None:
    """Lets the server tell those whose jobs no worker can take."""
    if _stopping.is_set():
        return
    try:
        store.presence.tell_working(device, for_s=4 * _PRESENCE_S)
    except RedisError as error:
        logger.warning("cannot tell that this worker is there: %s", error)


def sweep_jobs(queue: Celery, store: JobStore) -> None:
    """Takes jobs from dead workers and sends what waits without a message. The server does the same."""
    if _stopping.is_set():
        return
    try:
        for job_id in store.sweep():
            with suppress(NotFoundError):  # deleted meanwhile
                send_training(queue, job_id, store.device(job_id))
                store.mark_sent(job_id)
                logger.info("job %s was sent again", job_id)
    except (RedisError, OperationalError) as error:
        logger.warning("cannot look after lost jobs now: %s", error)


def sweep_volume(volume: Volume, store: JobStore) -> None:
    """Removes what no attempt will need. A sweep that fails is made again."""
    try:
        sweep_leftovers(volume, store)
    except (RedisError, OSError) as error:
        logger.warning("cannot look after leftovers now: %s", error)


def _stop_children(**_: Any) -> None:
    """Celery lets a running task end before it exits; a fine-tuning run would take hours to.

    SIGTERM makes it hand its job back at the next step (see worker.tasks).
    """
    _stopping.set()
    for child in active_children():
        os.kill(child.pid, signal.SIGTERM)


def _prepare_process() -> None:
    # One worker, one device: more workers, each with its own CUDA_VISIBLE_DEVICES, use more.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    # Each job runs in a fork. What is imported before need not be imported again, which takes seconds. Not so with
    # a GPU: bitsandbytes initialises CUDA when it is imported, and a fork of such a process cannot use it.
    # device_count() asks NVML and leaves CUDA alone.
    if not torch.cuda.device_count():
        importlib.import_module("worker.run")
    # Neither copied by the forks' collections, nor looked through when this process ends, which takes seconds.
    gc.freeze()


# Celery wants a module attribute; this module is imported by nothing but Celery.
queue = create_worker(Settings())
_prepare_process()
