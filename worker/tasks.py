"""train(): claim the next job, run it, finish it. A message too many finds nothing to claim."""

import importlib
import logging
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from redis import Redis, RedisError
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from core.errors import NotFoundError, ServiceError
from core.job_store import Claim, JobStore, LeaseLostError
from core.jobs import ENDED, JobError
from core.settings import Settings
from core.volume import SCRATCH_PREFIX, Volume
from worker.job_log import job_log
from worker.lease import (
    JobCancelledError,
    JobPausedError,
    LeaseKeeper,
    StopRequest,
    WorkerStoppingError,
)
from worker.volume_fault import volume_fault

logger = logging.getLogger(__name__)


def connect_store(settings: Settings) -> JobStore:
    """A store over a connection of this process. Rides out some seconds without Redis."""
    redis = Redis.from_url(
        settings.redis_url,
        decode_responses=True,
        socket_timeout=10,
        socket_connect_timeout=3,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=10),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    return JobStore(redis, lease_s=settings.job_lease_s, max_attempts=settings.max_attempts)


def train(settings: Settings, device: str = "cpu") -> None:
    """Does the job that is next on `device`, whatever comes of it; raises only where Redis is gone."""
    store, volume = connect_store(settings), Volume(settings.data_dir)
    with _stop_on_sigterm() as stop:
        claim = store.claim_next(device)
        if claim is None:
            logger.info("nothing to claim")
            return
        lease = LeaseKeeper(
            store, claim, stop, lease_s=settings.job_lease_s, grace_s=settings.stop_grace_s
        )
        with lease:
            try:
                _work(settings, volume, store, claim, lease)
            except LeaseLostError:
                logger.warning("job %s was taken from this worker; it stops here", claim.job.id)


def _work(
    settings: Settings, volume: Volume, store: JobStore, claim: Claim, lease: LeaseKeeper
) -> None:
    """The loop edge of the worker: each way in which an attempt can end, once."""
    try:
        with job_log(_open_folder(volume, claim)):
            logger.info("job %s, attempt %d", claim.job.id, claim.job.attempt)
            try:
                # Not at the top of this file: see worker.main on CUDA and forks.
                run = importlib.import_module("worker.run")
                version = run.run_job(settings, volume, store, claim, lease)
                store.move(
                    claim,
                    "cancelled" if lease.ends_early else "succeeded",
                    adapter_version=version.version,
                )
            except JobCancelledError:
                logger.info("cancelled")
                store.move(claim, "cancelled")
            except JobPausedError:
                logger.info("paused")
                store.release(claim)
            except WorkerStoppingError:
                logger.info("this worker is stopping; the job goes back to the queue")
                store.release(claim)
            except (LeaseLostError, RedisError):
                # Without Redis nothing can be written. The lease runs out, and the next attempt takes up what
                # this one has published.
                raise
            except Exception as error:
                logger.exception("failed")
                store.move(claim, "failed", error=explain(error))
    except OSError as error:  # not even a log can be written
        logger.exception("job %s failed", claim.job.id)
        store.move(claim, "failed", error=explain(error))
    with suppress(NotFoundError):  # deleted as soon as it had ended
        if store.status(claim.job.id) in ENDED:
            volume.remove_checkpoints(claim.job.id)


def explain(error: Exception) -> JobError:
    """What the owner of a job is told. The traceback is in the attempt's log."""
    if isinstance(error, ServiceError):
        return JobError(code=error.code, message=error.message)
    if _is_out_of_memory(error):
        return JobError(
            code="out_of_memory",
            message="the run needs more memory than there is: lower config.training.per_device_"
            "train_batch_size (and raise gradient_accumulation_steps to make up for it) or "
            "max_length, or set gradient_checkpointing",
        )
    if fault := volume_fault(error):
        return fault
    return JobError(
        code="internal_error",
        message=f"the run failed unexpectedly ({type(error).__name__}); its log has the details",
    )


def _is_out_of_memory(error: BaseException | None) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # What PyTorch's CPU allocator raises has no type of its own; Trainer wraps what an evaluation raises.
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in str(error) or _is_out_of_memory(error.__cause__)
    )


def _open_folder(volume: Volume, claim: Claim) -> Path:
    """The attempt's folder. One that was handed back keeps its number, its curve and its log."""
    folder = volume.attempt(claim.job.id, claim.job.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.parent.glob(f"attempt-*/{SCRATCH_PREFIX}*"):  # by an attempt that was killed
        shutil.rmtree(torn, ignore_errors=True)
    return folder


@contextmanager
def _stop_on_sigterm() -> Iterator[StopRequest]:
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.make())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
