"""Datasets over HTTP: upload, list, look at, preview, delete."""

from functools import lru_cache
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Form, Query, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile as StarletteUploadFile

from app.deps import DatasetsDep, JobsDep, ServingDep, SettingsDep, TokenCounterDep, VolumeDep
from app.forms import faults_of, parse_json
from app.ingestion.ingest import CountTokens, OnError, Upload, ingest
from app.ingestion.mapping import parse_mapping
from app.preview import RenderedRow, render_rows
from app.schemas import Text
from core.datasets import Dataset, DatasetStore
from core.errors import ConflictError, TooLargeError
from core.holdout import HoldOut
from core.settings import Settings
from core.training_config import JobConfig
from core.volume import Volume

router = APIRouter(prefix="/datasets", tags=["datasets"])

_MIB = 1024 * 1024


class UploadOptions(BaseModel):
    """How an uploaded file is to be read."""

    model_config = ConfigDict(extra="forbid")

    mapping: Text | None = Field(
        None, description='JSON, such as {"source": "english", "target": "yoda"}; empty: guessed'
    )
    name: Text | None = Field(None, max_length=200, description="empty: the file's name")
    on_error: OnError = Field("fail", description="skip: drop unusable rows, and count them")
    encoding: Text | None = Field(
        None,
        max_length=40,
        description="of a text file, such as gb18030; empty: UTF-8, or what its bytes say",
    )


class DatasetForm(UploadOptions):
    """The parts of an upload."""

    file: UploadFile


@router.post("", status_code=201)
def upload_dataset(
    form: Annotated[DatasetForm, Form(media_type="multipart/form-data")],
    response: Response,
    store: DatasetsDep,
    volume: VolumeDep,
    settings: SettingsDep,
    count_tokens: TokenCounterDep,
) -> Dataset:
    """Validate a file of text pairs or conversations and keep it. The same rows again are one dataset.

    CSV, TSV, JSONL, JSON, TMX or Parquet. In the report of a Parquet file a line is a row.
    """
    dataset = ingest_upload(
        form.file,
        mapping=form.mapping,
        name=form.name,
        on_error=form.on_error,
        encoding=form.encoding,
        store=store,
        volume=volume,
        settings=settings,
        count_tokens=count_tokens,
    )
    response.headers["Location"] = f"{router.prefix}/{dataset.id}"
    return dataset


@router.get("")
def list_datasets(store: DatasetsDep) -> list[Dataset]:
    """All datasets, newest first."""
    return store.all()


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, store: DatasetsDep) -> Dataset:
    """One dataset, with the report of its upload and its first rows."""
    return store.get(dataset_id)


@router.get("/{dataset_id}/preview")
def preview_dataset(
    dataset_id: str,
    store: DatasetsDep,
    serving: ServingDep,
    n: Annotated[int, Query(ge=1, le=100, description="how many rows, from the first")] = 5,
    adapter_config: Annotated[
        str, Query(description="JSON: the `config` that a job would have; empty: the defaults")
    ] = "",
) -> list[RenderedRow]:
    """Rows as the model would see them in a job: rendered through its prompt, the trained part marked."""
    dataset = store.get(dataset_id)
    config = _parse_config(adapter_config).settled(
        num_rows=dataset.rows, hidden_size=serving.engine.hidden_size
    )
    rendered = render_rows(
        islice(store.rows(dataset_id), n),
        config,
        tokenizer=serving.model.tokenizer,
        hold_out=_hold_out(store, dataset_id, config.evaluation.holdout or 0),
        max_tokens=serving.engine.max_tokens,
    )
    return list(rendered)


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, store: DatasetsDep, jobs: JobsDep) -> None:
    """Delete a dataset that no unfinished job needs."""
    store.get(dataset_id)
    with jobs.dataset_lock(dataset_id):
        if jobs.uses_dataset(dataset_id):
            raise ConflictError(
                f"dataset {dataset_id!r} is in use by a job that has not ended; cancel it or wait",
                code="dataset_in_use",
            )
        store.delete(dataset_id)


@lru_cache(maxsize=32, typed=True)
def _hold_out(store: DatasetStore, dataset_id: str, holdout: int | float) -> HoldOut:
    """Reads all prompts, once: an id is of the same rows for ever. 0.5 s for 100,000 of 130 characters."""
    return HoldOut.choose(store.prompts(dataset_id), holdout)


def _parse_config(text: str) -> JobConfig:
    """Raises MalformedError or RequestValidationError, located in the query."""
    values = parse_json(text, "adapter_config") if text else {}
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        faults = faults_of(error, values, "query", "adapter_config")
        raise RequestValidationError(faults) from error


def ingest_upload(
    upload: StarletteUploadFile,
    *,
    mapping: str | None,
    name: str | None,
    on_error: OnError,
    encoding: str | None = None,
    store: DatasetStore,
    volume: Volume,
    settings: Settings,
    count_tokens: CountTokens,
) -> Dataset:
    """An uploaded file -> a dataset on the volume; also for the file of a new job.

    Raises TooLargeError, UnsupportedFormatError and InvalidError `dataset_invalid`, `mapping_invalid` or
    `encoding_unknown`.
    """
    filename = upload.filename or "upload"
    if (upload.size or 0) > settings.max_upload_mb * _MIB:
        raise TooLargeError(
            f"{filename[:80]!r} has {upload.size:,} bytes; at most {settings.max_upload_mb} MiB are "
            "accepted (DRAGOMAN_MAX_UPLOAD_MB)"
        )
    return ingest(
        Upload(
            upload.file,
            filename,
            name=name,
            mapping=parse_mapping(mapping) if mapping else None,
            on_error=on_error,
            encoding=encoding,
        ),
        store=store,
        volume=volume,
        count_tokens=count_tokens,
    )
