"""Datasets over HTTP: upload, list, look at, delete."""

from typing import Annotated

from fastapi import APIRouter, Form, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile as StarletteUploadFile

from app.deps import DatasetsDep, JobsDep, SettingsDep, TokenCounterDep, VolumeDep
from app.ingestion.ingest import CountTokens, OnError, Upload, ingest
from app.ingestion.mapping import parse_mapping
from app.schemas import Text
from core.datasets import Dataset, DatasetStore
from core.errors import ConflictError, TooLargeError
from core.settings import Settings
from core.volume import Volume

router = APIRouter(prefix="/datasets", tags=["datasets"])

_MIB = 1024 * 1024


class DatasetForm(BaseModel):
    """The parts of an upload."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    mapping: Text | None = Field(
        None, description='JSON, such as {"source": "english", "target": "yoda"}; empty: guessed'
    )
    name: Text | None = Field(None, max_length=200, description="empty: the file's name")
    on_error: OnError = Field("fail", description="skip: drop unusable rows, and count them")


@router.post("", status_code=201)
def upload_dataset(
    form: Annotated[DatasetForm, Form(media_type="multipart/form-data")],
    response: Response,
    store: DatasetsDep,
    volume: VolumeDep,
    settings: SettingsDep,
    count_tokens: TokenCounterDep,
) -> Dataset:
    """Validate a CSV, TSV, JSONL or JSON file of text pairs and keep it. The same rows again are one dataset."""
    dataset = ingest_upload(
        form.file,
        mapping=form.mapping,
        name=form.name,
        on_error=form.on_error,
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


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, store: DatasetsDep, jobs: JobsDep) -> None:
    """Delete a dataset that no unfinished job needs."""
    store.get(dataset_id)
    if jobs.uses_dataset(dataset_id):
        raise ConflictError(
            f"dataset {dataset_id!r} is in use by a job that has not ended; cancel it or wait",
            code="dataset_in_use",
        )
    store.delete(dataset_id)


def ingest_upload(
    upload: StarletteUploadFile,
    *,
    mapping: str | None,
    name: str | None,
    on_error: OnError,
    store: DatasetStore,
    volume: Volume,
    settings: Settings,
    count_tokens: CountTokens,
) -> Dataset:
    """An uploaded file -> a dataset on the volume; also for the file of a new job.

    Raises TooLargeError, UnsupportedFormatError and InvalidError `dataset_invalid` or `mapping_invalid`.
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
        ),
        store=store,
        volume=volume,
        count_tokens=count_tokens,
    )
