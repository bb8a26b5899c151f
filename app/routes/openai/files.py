"""Files for fine-tuning: the datasets, under another name."""

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile as StarletteUploadFile

from app.deps import DatasetsDep, JobsDep, ServicesDep
from app.forms import form_values, opened_form
from app.json_lines import MEDIA_TYPE, JsonLines
from app.routes.datasets import delete_dataset, ingest_upload
from app.routes.openai.shapes import Deleted, FileObject, Page
from app.services import Services
from core.datasets import Dataset, DatasetStore
from core.errors import InvalidError

router = APIRouter(prefix="/v1/files")

_PURPOSE = "fine-tune"
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": 'JSONL with {"messages": [...]} a line, or any format that /datasets takes',
        },
        "purpose": {"enum": [_PURPOSE]},
    },
}


@router.post(
    "",
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    },
)
async def create_file(request: Request, services: ServicesDep) -> FileObject:
    """Validate a file of conversations and keep it as a dataset. The same rows again are the same file."""
    async with opened_form(request, max_fields=20) as form:
        values = form_values(form)
        file = values.get("file")
        if not isinstance(file, StarletteUploadFile):
            raise InvalidError("the form has no `file`", code="file_missing")
        if values.get("purpose") != _PURPOSE:
            raise InvalidError(
                f"purpose is {str(values.get('purpose'))[:80]!r}; only {_PURPOSE!r} is accepted",
                code="purpose_invalid",
            )
        return await run_in_threadpool(_keep, file, services)


@router.get("")
def list_files(
    store: DatasetsDep,
    purpose: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: Annotated[str | None, Query(max_length=80)] = None,
) -> Page[FileObject]:
    """All files, newest first unless `order` is asc."""
    datasets = store.all() if purpose in (None, _PURPOSE) else []
    if order == "asc":
        datasets.reverse()
    ids = [dataset.id for dataset in datasets]
    if after is not None:
        datasets = datasets[ids.index(after) + 1 :] if after in ids else []
    return Page(
        data=[_file_object(dataset, store) for dataset in datasets[:limit]],
        has_more=len(datasets) > limit,
        first_id=datasets[0].id if datasets else None,
        last_id=datasets[:limit][-1].id if datasets else None,
    )


@router.get("/{file_id}")
def get_file(file_id: str, store: DatasetsDep) -> FileObject:
    """One file."""
    return _file_object(store.get(file_id), store)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: {}}}},
)
def get_content(file_id: str, store: DatasetsDep) -> JsonLines:
    """The rows as they are trained on: JSONL, one conversation a line."""
    store.get(file_id)
    return JsonLines(read_conversations(file_id, store))


@router.delete("/{file_id}")
def delete_file(file_id: str, store: DatasetsDep, jobs: JobsDep) -> Deleted:
    """Delete a file that no unfinished job needs."""
    delete_dataset(file_id, store, jobs)
    return Deleted(id=file_id, object="file")


def _keep(file: StarletteUploadFile, services: Services) -> FileObject:
    dataset = ingest_upload(
        UploadFile(file.file, size=file.size, filename=file.filename),
        mapping=None,
        name=file.filename,
        on_error="fail",
        store=services.datasets,
        volume=services.volume,
        settings=services.settings,
        count_tokens=services.require_serving().count_tokens,
    )
    return _file_object(dataset, services.datasets)


def _file_object(dataset: Dataset, store: DatasetStore) -> FileObject:
    return FileObject(
        id=dataset.id,
        bytes=store.rows_path(dataset.id).stat().st_size,
        created_at=int(dataset.created_at.timestamp()),
        filename=dataset.name,
    )


def read_conversations(dataset_id: str, store: DatasetStore) -> Iterator[str]:
    """JSON lines, each with the `messages` of a row."""
    for row in store.rows(dataset_id):
        turns = [
            {"role": role, "content": content}
            for exchange in (row, *row.further)
            for role, content in (("user", exchange.prompt), ("assistant", exchange.completion))
        ]
        yield json.dumps({"messages": turns}, ensure_ascii=False) + "\n"
