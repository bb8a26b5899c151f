"""Keeps a claimed job's lease alive while it is worked on, and knows why the work should stop."""

import logging
import os
import threading
import time
from types import TracebackType
from typing import Self

from redis import RedisError

from core.job_store import Claim, JobStore, LeaseLostError, Standing
from core.jobs import JobStatus

logger = logging.getLogger(__name__)

_LONGEST_INTERVAL_S = 1.0  # so that a cancel is noticed within a second, however long the lease is


class JobCancelledError(Exception):
    """Somebody asked for this job to be cancelled."""


class JobPausedError(Exception):
    """Somebody asked for this job to be paused."""


class WorkerStoppingError(Exception):
    """The worker was told to exit; the job goes back to the queue."""


class StopRequest:
    """Whether, and since when, this process should exit."""

    def __init__(self) -> None:
        self._made_at_s: float | None = None

    def make(self) -> None:
        """Safe in a signal handler."""
        if self._made_at_s is None:
            self._made_at_s = time.monotonic()

    @property
    def age_s(self) -> float | None:
        """Seconds since it was made; None if it was not."""
        return None if self._made_at_s is None else time.monotonic() - self._made_at_s


class LeaseKeeper:
    """Renews the lease from a thread of its own; the rest is for the code that does the work.

    After a stop request the work has `grace_s` seconds to reach a `check`; then the job is handed back from here and
    the process ends, because a step on a large model must not hold up a deploy. So it is after a cancel, and once the
    lease is lost: work that hangs would keep the device, and a cancelled job `cancelling`, for ever.
    """

    def __init__(
        self, store: JobStore, claim: Claim, stop: StopRequest, *, lease_s: float, grace_s: float
    ) -> None:
        self._store = store
        self._claim = claim
        self._stop = stop
        self._lease_s = lease_s
        self._interval_s = min(lease_s / 4, _LONGEST_INTERVAL_S)
        self._grace_s = grace_s
        # Nobody claims a cancelled job but to publish what it has learnt.
        status = claim.job.status
        self._standing = Standing(status, publishes=status == JobStatus.CANCELLING)
        self._renewed_at_s = time.monotonic()
        self._is_lost = False
        self._useless_since_s: float | None = None
        # Elsewhere than in the main thread the process is somebody else's.
        self._may_end_process = threading.current_thread() is threading.main_thread()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_closed, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._thread.join()

    @property
    def interruption(self) -> Exception | None:
        """Why the work should stop, if it should: LeaseLostError, or the Job…Error and Worker…Error of this module."""
        status, publishes = self._standing
        if self._is_lost:
            return LeaseLostError(self._claim.job.id)
        if status == JobStatus.CANCELLING and not publishes:
            return JobCancelledError(self._claim.job.id)
        if status == JobStatus.PAUSING:
            return JobPausedError(self._claim.job.id)
        if self._stop.age_s is not None:
            return WorkerStoppingError(self._claim.job.id)
        return None

    @property
    def ends_early(self) -> bool:
        """Whether training should end now, and what was learnt be published."""
        return self._standing == (JobStatus.CANCELLING, True)

    def check(self) -> None:
        """Raises the interruption."""
        if error := self.interruption:
            raise error

    def check_in_step(self) -> None:
        """As `check`, where a step or an evaluation would be lost: what can wait for its end does."""
        if isinstance(error := self.interruption, LeaseLostError | JobCancelledError):
            raise error

    def renew_now(self) -> None:
        """As `check`, with the record's state of this moment."""
        self._renew()
        self.check()

    def confirm(self) -> bool:
        """Whether the job is this worker's for certain, also while Redis does not answer. Raises LeaseLostError."""
        try:
            self._renew()
        except RedisError as error:
            logger.warning("cannot renew the lease of job %s: %s", self._claim.job.id, error)
            return time.monotonic() - self._renewed_at_s < self._lease_s
        return True

    def _renew(self) -> None:
        asked_at_s = time.monotonic()  # the lease runs from then at the earliest
        self._standing = self._store.renew(self._claim)
        self._renewed_at_s = asked_at_s

    def _renew_until_closed(self) -> None:
        while not self._closed.wait(self._interval_s):
            try:
                self._renew()
            except LeaseLostError:
                self._is_lost = True
            except RedisError as error:
                # Whether the lease is lost is for Redis to say, once it answers again.
                logger.warning("cannot renew the lease of job %s: %s", self._claim.job.id, error)
            self._end_after_grace()

    def _end_after_grace(self) -> None:
        if isinstance(self.interruption, JobCancelledError | LeaseLostError):
            self._useless_since_s = self._useless_since_s or time.monotonic()
        age_s = self._stop.age_s
        if age_s is None and self._useless_since_s is not None:
            age_s = time.monotonic() - self._useless_since_s
        if age_s is None or age_s < self._grace_s or not self._may_end_process:
            return
        logger.warning(
            "job %s did not stop in %.0f s: ending this process",
            self._claim.job.id,
            self._grace_s,
        )
        try:
            self._store.release(self._claim)
        finally:
            os._exit(1)
