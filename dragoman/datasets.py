"""Datasets: upload, list, look at, delete."""

import builtins
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dragoman.calls import Call, Upload, path, read_nothing, reads
from dragoman.downloads import save, save_async
from dragoman.endpoint import AsyncResource, Resource, endpoint
from dragoman.models import Dataset, PreviewRow
from dragoman.transport import UPLOAD_TIMEOUT

_DATASETS = builtins.list[Dataset]
_ROWS = builtins.list[PreviewRow]
OnError = Literal["fail", "skip"]


class DatasetEndpoints:
    @endpoint
    def upload(
        self,
        file: str | Path | bytes,
        *,
        filename: str | None = None,
        name: str | None = None,
        mapping: Mapping[str, str] | None = None,
        on_error: OnError = "fail",
        encoding: str | None = None,
    ) -> Call[Dataset]:
        """Sends a file of text pairs: a path, or its bytes with a `filename` whose ending tells the format.

        `mapping` names the columns, `{"source": "english", "target": "yoda"}`; without it they are guessed.
        The same rows again are the same dataset. Raises InvalidError `dataset_invalid`, whose `extra["report"]`
        has every faulty line; `on_error="skip"` drops those.
        """
        upload = Upload.of(file, filename)
        form = upload_form(name, mapping, on_error, encoding)
        return Call(
            "POST", "/datasets", reads(Dataset), form=form, upload=upload, timeout=UPLOAD_TIMEOUT
        )

    @endpoint
    def list(self) -> Call[_DATASETS]:
        """All, newest first."""
        return Call("GET", "/datasets", reads(_DATASETS))

    @endpoint
    def get(self, dataset_id: str) -> Call[Dataset]:
        """One, with the report of its upload. Raises NotFoundError."""
        return Call("GET", path("datasets", dataset_id), reads(Dataset))

    @endpoint
    def preview(
        self, dataset_id: str, *, n: int = 5, config: Mapping[str, Any] | None = None
    ) -> Call[_ROWS]:
        """The first `n` rows as the model will see them under a job's `config`."""
        params = {"n": n, "adapter_config": None if config is None else json.dumps(config)}
        return Call("GET", path("datasets", dataset_id, "preview"), reads(_ROWS), params=params)

    @endpoint
    def delete(self, dataset_id: str) -> Call[None]:
        """Raises NotFoundError, or ConflictError while a job needs it."""
        return Call("DELETE", path("datasets", dataset_id), read_nothing)


class Datasets(DatasetEndpoints, Resource):
    def download(self, dataset_id: str, target: str | Path) -> Path:
        """Writes the rows as JSON lines to the file `target`, which appears only when it is whole."""
        return save(self._transport, download_call(dataset_id), target)


class AsyncDatasets(DatasetEndpoints, AsyncResource):
    async def download(self, dataset_id: str, target: str | Path) -> Path:
        """Writes the rows as JSON lines to the file `target`, which appears only when it is whole."""
        return await save_async(self._transport, download_call(dataset_id), target)


def download_call(dataset_id: str) -> Call[None]:
    return Call("GET", path("datasets", dataset_id, "download"), read_nothing)


def upload_form(
    name: str | None,
    mapping: Mapping[str, str] | None,
    on_error: OnError,
    encoding: str | None,
) -> dict[str, str]:
    """The text parts that go with an uploaded file; those that are not given are left out."""
    parts = {
        "name": name,
        "mapping": None if mapping is None else json.dumps(mapping),
        "on_error": None if on_error == "fail" else on_error,
        "encoding": encoding,
    }
    return {key: value for key, value in parts.items() if value is not None}
