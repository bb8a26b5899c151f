"""Datasets on the volume: normalised rows, content-addressed, and what was found when they were uploaded."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import NotFoundError
from core.volume import Volume, flush_entries, flush_to_disk

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9-]{1,80}")
ROWS_FILE = "rows.jsonl"
RECORD_FILE = "dataset.json"


class Exchange(BaseModel):
    """What is said, and what is to be answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    completion: str


class Row(Exchange):
    """One pair to learn from, or the first of a conversation whose other exchanges are in `further`."""

    further: tuple[Exchange, ...] = ()


class RowError(BaseModel):
    """Why a line of the upload cannot be used. Lines count from 1, the header included."""

    line: int
    column: str | None = None
    code: str
    message: str


class TokenStatistics(BaseModel):
    """Tokens of source plus target text, by the base model's tokenizer, without the chat template."""

    min: int
    median: int
    p95: int
    max: int
    total: int


class DatasetReport(BaseModel):
    """What an upload held. `errors` are the first of the `unusable` rows; the other counts are of all."""

    errors: list[RowError] = []
    warnings: list[str] = []
    unusable: int = 0
    duplicates: int = 0
    empty: int = 0
    too_long: int = 0
    tokens: TokenStatistics | None = None


class Dataset(BaseModel):
    """`sha256` is of the normalised rows; `mapping` says which column became which side."""

    id: str
    name: str
    format: str
    rows: int
    columns: list[str]
    mapping: dict[str, str]
    sha256: str
    created_at: datetime
    report: DatasetReport
    preview: list[Row]


class DatasetStore:
    """Datasets as folders: rows.jsonl and dataset.json."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def save(self, dataset: Dataset, staged: Path) -> Dataset:
        """Publishes the folder `staged`, which holds rows.jsonl; returns the older record if it is there already."""
        (staged / RECORD_FILE).write_text(dataset.model_dump_json(), encoding="utf-8")
        flush_to_disk(staged)
        target = self._volume.datasets / dataset.id
        try:
            staged.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        flush_entries(self._volume.datasets)
        return self.get(dataset.id)

    def get(self, dataset_id: str) -> Dataset:
        """Raises NotFoundError `dataset_not_found`."""
        path = self._volume.datasets / dataset_id / RECORD_FILE
        if _ID.fullmatch(dataset_id):
            try:
                return Dataset.model_validate_json(path.read_bytes())
            except (FileNotFoundError, NotADirectoryError):
                pass
            except ValidationError as error:
                logger.warning("%s is unreadable: %s", path, error)
        raise NotFoundError(
            f"dataset {dataset_id[:80]!r} does not exist; POST /datasets uploads one",
            code="dataset_not_found",
        )

    def all(self) -> list[Dataset]:
        """Newest first."""
        found = []
        for folder in self._volume.datasets.iterdir():
            with suppress(NotFoundError):  # deleted meanwhile, or no dataset
                found.append(self.get(folder.name))
        return sorted(found, key=lambda d: d.created_at, reverse=True)

    def rows(self, dataset_id: str) -> Iterator[Row]:
        """Streams the rows in upload order."""
        with self.rows_path(dataset_id).open(encoding="utf-8") as file:
            for line in file:
                yield Row.model_validate(json.loads(line))

    def rows_path(self, dataset_id: str) -> Path:
        return self._volume.datasets / dataset_id / ROWS_FILE

    def delete(self, dataset_id: str) -> None:
        """Raises NotFoundError."""
        self.get(dataset_id)
        with self._volume.staged_folder() as staged, suppress(FileNotFoundError):
            # Suppressed: another request deleted it meanwhile. What is staged goes with the folder.
            (self._volume.datasets / dataset_id).rename(staged / "deleted")
