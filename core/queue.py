"""The Celery app and the one task's name. Only job ids cross the queue; the records are in Redis."""

import re

from celery import Celery

from core.settings import Settings

TRAIN_TASK = "dragoman.train"
TRAINING_QUEUE = "training"
# Nothing hangs on it: lost jobs are found by their leases, and a second delivery finds nothing to claim.
_VISIBILITY_TIMEOUT_S = 3600


def queue_name(device: str) -> str:
    """The queue of jobs for `device`: "auto" (any), "cpu" or "cuda"."""
    return TRAINING_QUEUE if device == "auto" else f"{TRAINING_QUEUE}.{device}"


def create_queue(settings: Settings) -> Celery:
    """A Celery app over the Redis of `settings`."""
    queue = Celery("dragoman", broker=_broker_url(settings.redis_url))
    queue.conf.update(
        task_ignore_result=True,
        task_default_queue=TRAINING_QUEUE,
        task_serializer="json",
        accept_content=["json"],
        # A message is gone only when its job has ended; a second delivery finds nothing to claim.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        # Sending must fail soon rather than hang a request.
        broker_transport_options={
            "socket_connect_timeout": 3,
            "socket_timeout": 10,
            "visibility_timeout": _VISIBILITY_TIMEOUT_S,
        },
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.2},
    )
    return queue


def _broker_url(redis_url: str) -> str:
    """kombu spells redis-py's unix://path?db=1 otherwise."""
    if not redis_url.startswith("unix://"):
        return redis_url
    return re.sub(r"([?&])db=", r"\1virtual_host=", redis_url.replace("unix", "redis+socket", 1))


def send_training(queue: Celery, job_id: str, device: str = "auto") -> None:
    """Puts a job's id into the queue of `device`. Raises kombu's OperationalError where Redis cannot be reached."""
    queue.send_task(TRAIN_TASK, args=[job_id], queue=queue_name(device))
