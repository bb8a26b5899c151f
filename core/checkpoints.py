"""Checkpoints of jobs that have not ended, on the volume: `jobs/{id}/checkpoints/step-{n}/`, and `trained/` of a run that is through.

Each appears by one rename and goes by one, at any time. It is what a run goes on from (see worker.checkpoints), and a
PEFT folder with a seal, with which the server can translate.
"""

import logging
import re
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from core.adapter_version import SEAL_FILE, AdapterVersion, Seal
from core.volume import CHECKPOINTS, Volume

logger = logging.getLogger(__name__)

RECORD_FILE = "checkpoint.json"
TRAINED = "trained"
_STEP_PREFIX = "step-"
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class CheckpointRecord(BaseModel):
    """checkpoint.json. `files`: sizes in bytes, by name."""

    step: int
    files: dict[str, int] = {}

    def is_whole(self, folder: Path) -> bool:
        """Raises FileNotFoundError where a file is missing."""
        return all((folder / name).stat().st_size == size for name, size in self.files.items())


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"{_STEP_PREFIX}{step}"


def step_folders(checkpoints: Path) -> list[Path]:
    """Newest first."""
    found = {}
    for path in checkpoints.glob(f"{_STEP_PREFIX}*"):
        with suppress(ValueError):
            found[int(path.name.removeprefix(_STEP_PREFIX))] = path
    return [found[step] for step in sorted(found, reverse=True)]


def find_checkpoints(volume: Volume, job_id: str) -> list[AdapterVersion]:
    """What of a job can be translated with now, the furthest first; each has the reference `job:{id}@{step}`."""
    if not _JOB_ID.fullmatch(job_id):
        return []
    folder = volume.jobs / job_id / CHECKPOINTS
    found: dict[int, AdapterVersion] = {}
    for path in (folder / TRAINED, *step_folders(folder)):
        checkpoint = _read(job_id, path)
        if checkpoint is not None:
            found.setdefault(checkpoint.version, checkpoint)
    return list(found.values())


def _read(job_id: str, path: Path) -> AdapterVersion | None:
    try:
        record = CheckpointRecord.model_validate_json((path / RECORD_FILE).read_bytes())
        if SEAL_FILE not in record.files or not record.is_whole(path):
            return None
        seal = Seal.model_validate_json((path / SEAL_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None  # pruned meanwhile
    except (OSError, ValidationError) as error:
        logger.warning("checkpoint %s of job %s is unreadable: %s", path.name, job_id, error)
        return None
    return AdapterVersion.of_job(job_id, record.step, path, seal)
