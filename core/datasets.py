"""Datasets on the volume: normalised rows, content-addressed, and what was found when they were uploaded."""

import errno
import hashlib
import logging
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import NotFoundError
from core.volume import Volume, flush_entries, flush_to_disk

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9-]{1,80}")
ROWS_FILE = "rows.arrow"
RECORD_FILE = "dataset.json"

_EXCHANGE = pa.struct([("prompt", pa.string()), ("completion", pa.string())])
_SCHEMA = pa.schema([*_EXCHANGE, ("further", pa.list_(_EXCHANGE))])


class Exchange(BaseModel):
    """What is said, and what is to be answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    completion: str


class Row(Exchange):
    """One pair to learn from, or the first of a conversation whose other exchanges are in `further`."""

    further: tuple[Exchange, ...] = ()

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All of the conversation, the first included."""
        return (self, *self.further)


class RowError(BaseModel):
    """Why a line of the upload cannot be used. Lines count from 1, the header included."""

    line: int
    column: str | None = None
    code: str
    message: str


class RowWarning(BaseModel):
    """What is odd about `count` rows of the upload, or about the file (0). `lines` are the first of theirs."""

    code: str
    message: str
    count: int = 0
    lines: list[int] = []


class TokenStatistics(BaseModel):
    """Tokens of a row's texts, by the base model's tokenizer, without the chat template."""

    min: int
    median: int
    p95: int
    max: int
    total: int


class DatasetReport(BaseModel):
    """What an upload held. `errors` are the first of the `unusable` rows; the other counts are of all."""

    errors: list[RowError] = []
    warnings: list[RowWarning] = []
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


class RowWriter:
    """Writes rows as an Arrow stream, one batch at a time, and hashes them; a context manager.

    The columns are prompt, completion and further, so that `datasets.Dataset.from_file` maps the file into memory.
    """

    def __init__(self, path: Path) -> None:
        self._stream = pa.ipc.new_stream(path, _SCHEMA)
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        """Of the rows written so far, as JSON lines; the same whatever the batches."""
        return self._digest.hexdigest()

    def write(self, rows: Sequence[Row]) -> None:
        further = [exchange for row in rows for exchange in row.further]
        starts = pa.Array.from_buffers(
            pa.int32(), len(rows) + 1, [None, _offsets(len(row.further) for row in rows)]
        )
        columns = [*_columns(rows), pa.ListArray.from_arrays(starts, _structs(further))]
        self._stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        for row in rows:
            content = row.model_dump_json(exclude_defaults=True)
            self._digest.update(f"{content}\n".encode())


# Arrays are made of their buffers: pa.array would import pandas, 50 MiB of it.


def _structs(exchanges: Sequence[Exchange]) -> Any:
    return pa.StructArray.from_arrays(_columns(exchanges), fields=list(_EXCHANGE))


def _columns(exchanges: Sequence[Exchange]) -> list[Any]:
    return [_strings([e.prompt for e in exchanges]), _strings([e.completion for e in exchanges])]


def _strings(texts: Sequence[str]) -> Any:
    encoded = [text.encode() for text in texts]
    offsets = _offsets(map(len, encoded))
    return pa.StringArray.from_buffers(len(texts), offsets, pa.py_buffer(b"".join(encoded)))


def _offsets(lengths: Iterable[int]) -> Any:
    return pa.py_buffer(array("i", accumulate(lengths, initial=0)))


def read_rows(path: Path) -> Iterator[Row]:
    """Streams what a RowWriter wrote."""
    with _batches(path) as batches:
        for batch in batches:
            for values in batch.to_pylist():
                yield Row.model_validate(values)


def read_prompts(path: Path) -> Iterator[str]:
    """Streams the (first) source text of each row, in a tenth of the time that whole rows take."""
    with _batches(path) as batches:
        for batch in batches:
            yield from batch.column("prompt").to_pylist()


@contextmanager
def _batches(path: Path) -> Iterator[Any]:
    # Read, not mapped: the pages of a map would count as this process's memory.
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as batches:
        yield batches


class DatasetStore:
    """Datasets as folders: rows.arrow and dataset.json."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def save(self, dataset: Dataset, staged: Path) -> Dataset:
        """Publishes the folder `staged`, which holds rows.arrow; returns the older record if it is there already.

        It is kept even while others delete the same dataset, and takes the place of a spoilt one.
        """
        (staged / RECORD_FILE).write_text(dataset.model_dump_json(), encoding="utf-8")
        flush_to_disk(staged)
        target = self._volume.datasets / dataset.id
        num_unreadable = 0
        while not _publish(staged, target):
            try:
                return self.get(dataset.id)
            except NotFoundError:
                # Deleted meanwhile, or spoilt, if it cannot be read the next time either.
                num_unreadable += 1
                if num_unreadable > 1:
                    self._volume.take_away(target)
        flush_entries(self._volume.datasets)
        return dataset

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
        return read_rows(self.rows_path(dataset_id))

    def prompts(self, dataset_id: str) -> Iterator[str]:
        """Streams the rows' (first) source texts."""
        return read_prompts(self.rows_path(dataset_id))

    def rows_path(self, dataset_id: str) -> Path:
        return self._volume.datasets / dataset_id / ROWS_FILE

    def delete(self, dataset_id: str) -> None:
        """Raises NotFoundError."""
        self.get(dataset_id)
        self._volume.take_away(self._volume.datasets / dataset_id)


def _publish(staged: Path, target: Path) -> bool:
    """Whether `staged` was renamed; False where a folder is there."""
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
