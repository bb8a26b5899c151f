"""What was gathered here, out again: JSON lines that POST /datasets and `datasets.load_dataset` take."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.deps import DatasetsDep, RegistryDep, VolumeDep
from app.json_lines import MEDIA_TYPE, JsonLines
from app.routes.openai.files import read_conversations
from app.suggestions import read_suggestions
from core.adapters import check_adapter_name
from core.datasets import Dataset, DatasetStore

router = APIRouter(tags=["datasets"])

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {}}, "description": "JSON lines"}
}


@router.get("/datasets/{dataset_id}/download", response_class=StreamingResponse, responses=_ANSWER)
def download_dataset(dataset_id: str, store: DatasetsDep) -> JsonLines:
    """The rows of a dataset as JSON lines: `prompt` and `completion`, or `messages`. Uploaded again, they are the same dataset."""
    return _attached(_rows(store.get(dataset_id), store), dataset_id)


@router.get("/suggestions", response_class=StreamingResponse, responses=_ANSWER)
def download_suggestions(
    volume: VolumeDep,
    registry: RegistryDep,
    adapter: Annotated[str | None, Query(max_length=63, description="empty: of all")] = None,
) -> JsonLines:
    """Suggested translations as JSON lines, oldest first: `prompt`, `completion`, and whose answer was bettered."""
    if adapter:
        path = volume.suggestions / f"{check_adapter_name(adapter)}.jsonl"
        if not path.exists():
            registry.get(adapter)  # 404 unless there is one, or was
    found = read_suggestions(volume, adapter or None)
    lines = (f"{suggestion.model_dump_json()}\n" for suggestion in found)
    return _attached(lines, f"{adapter}-suggestions" if adapter else "suggestions")


def _rows(dataset: Dataset, store: DatasetStore) -> Iterator[str]:
    if "messages" in dataset.mapping:
        return read_conversations(dataset.id, store)
    return (f"{row.model_dump_json(exclude_defaults=True)}\n" for row in store.rows(dataset.id))


def _attached(lines: Iterator[str], name: str) -> JsonLines:
    disposition = f'attachment; filename="{name}.jsonl"'
    return JsonLines(lines, {"Content-Disposition": disposition})
