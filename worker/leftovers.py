"""What attempts leave on the volume: removed when nobody can need it any more."""

import logging
from contextlib import suppress

from core.errors import NotFoundError
from core.job_store import JobStore
from core.jobs import ENDED
from core.volume import CHECKPOINTS, SCRATCH_PREFIX, Volume

logger = logging.getLogger(__name__)


def sweep_leftovers(volume: Volume, store: JobStore) -> None:
    """Removes the checkpoints of jobs that ended without a worker, and what killed processes have staged.

    A job without a record keeps its own: the record may be in a Redis that is being restored.
    """
    volume.sweep_staging()
    for job_id in _with_leftovers(volume):
        with suppress(NotFoundError):
            if store.status(job_id) in ENDED:
                logger.info("the checkpoints of job %s, which has ended, are removed", job_id)
                volume.remove_checkpoints(job_id)


def _with_leftovers(volume: Volume) -> set[str]:
    kept = {path.parent.name for path in volume.jobs.glob(f"*/{CHECKPOINTS}")}
    torn = volume.jobs.glob(f"*/attempt-*/{SCRATCH_PREFIX}*")
    return kept | {path.parent.parent.name for path in torn}
