"""The shared volume: where things lie, and how they appear there whole or not at all."""

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# In a job's folder, and in those of its attempts.
CHECKPOINTS = "checkpoints"
SCRATCH_PREFIX = "scratch-"


class Volume:
    """Paths below DATA_DIR. Everything is staged first and then renamed, so a reader never sees half of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self.datasets = self.root / "datasets"
        self.jobs = self.root / "jobs"
        self.adapters = self.root / "adapters"
        self.suggestions = self.root / "suggestions"
        self._staging = self.root / "staging"

    def create(self) -> None:
        """Makes the folders. Raises OSError where the volume cannot be written."""
        for folder in (self.datasets, self.jobs, self.adapters, self.suggestions, self._staging):
            folder.mkdir(parents=True, exist_ok=True)

    def sweep_staging(self, max_age_s: float = 86_400) -> None:
        """Removes what processes that were killed while writing have left behind."""
        for left in self._staging.iterdir():
            with suppress(FileNotFoundError):  # published or removed meanwhile
                if time.time() - left.stat().st_mtime > max_age_s:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def check_writable(self) -> None:
        """Raises OSError, saying why, if nothing can be written."""
        probe = self._staging / f".probe-{secrets.token_hex(4)}"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)  # on a full volume it is there, and empty

    def attempt(self, job_id: str, attempt: int) -> Path:
        """The folder of one attempt at a job: metrics.jsonl, log.txt, the trainer's output."""
        return self.jobs / job_id / f"attempt-{attempt}"

    def newest_attempt(self, job_id: str) -> Path:
        """The folder that has the job's curve and log. It need not exist: nothing has begun then.

        The record's number is no guide: while a job is handed back or paused, its last attempt does not count.
        """
        folders = (self.jobs / job_id).glob("attempt-*")
        numbers = [int(folder.name.removeprefix("attempt-")) for folder in folders]
        return self.attempt(job_id, max(numbers, default=1))

    def remove_checkpoints(self, job_id: str) -> None:
        """Of a job that has ended: what its attempts kept, or were writing, to go on from."""
        folder = self.jobs / job_id
        self.remove_folder(folder / CHECKPOINTS)
        for left in folder.glob(f"attempt-*/{SCRATCH_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)

    def remove_folder(self, path: Path) -> None:
        """Removes a folder that others may be reading, if it is there: in one step, or else piece by piece."""
        try:
            self.take_away(path)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)

    def remove_job(self, job_id: str) -> None:
        """Removes all folders of a job, in one step. Raises OSError."""
        self.take_away(self.jobs / job_id)

    def take_away(self, path: Path) -> None:
        """Removes a folder, if it is there, in one step, for which a full volume has room. Raises OSError."""
        try:
            with self.taken_away(path):
                pass
        except FileNotFoundError:
            self._staging.stat()  # raises where it is the volume that is not there

    @contextmanager
    def taken_away(self, path: Path) -> Iterator[None]:
        """As `take_away`, but for the folder, which must be there, to be put back should the block fail."""
        removed = self._staging / secrets.token_hex(8)
        path.rename(removed)
        try:
            yield
        except BaseException:
            removed.rename(path)
            raise
        shutil.rmtree(removed, ignore_errors=True)

    @contextmanager
    def staged_folder(self) -> Iterator[Path]:
        """A private folder on the volume, to be renamed into place; removed if it was not."""
        folder = self._staging / secrets.token_hex(8)
        folder.mkdir()  # without its parents: what is unmounted must not be made anew on another disk
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write_json(self, path: Path, value: Any) -> None:
        """Replaces the file at `path` in one step."""
        staged = self._staging / secrets.token_hex(8)
        try:
            staged.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
            flush_to_disk(staged)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Makes a file, or a folder with all below it, survive a power cut."""
    if path.is_dir():
        for child in path.iterdir():
            flush_to_disk(child)
    flush_entries(path)


def flush_entries(path: Path) -> None:
    """Makes a file's content, or a folder's own entries (what was renamed into it), survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
