"""Adapters: what there is, which version is current, in and out as files."""

import builtins
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dragoman.calls import Call, Upload, path, read_nothing, reads
from dragoman.downloads import save, save_async
from dragoman.endpoint import AsyncResource, Resource, endpoint
from dragoman.errors import DragomanError
from dragoman.models import Adapter, AdapterVersion

_ADAPTERS = builtins.list[Adapter]


class AdapterEndpoints:
    @endpoint
    def list(self) -> Call[_ADAPTERS]:
        """All, by name."""
        return Call("GET", "/adapters", reads(_ADAPTERS))

    @endpoint
    def get(self, name: str) -> Call[Adapter]:
        """Raises NotFoundError."""
        return Call("GET", path("adapters", name), reads(Adapter))

    @endpoint
    def version(self, name: str, version: int) -> Call[AdapterVersion]:
        """One version, with its seal. Raises NotFoundError."""
        return Call("GET", path("adapters", name, "versions", version), reads(AdapterVersion))

    @endpoint
    def promote(self, name: str, version: int) -> Call[Adapter]:
        """Makes `version` the one that `name` stands for, newer or older than today's."""
        body = {"version": version}
        return Call("PUT", path("adapters", name, "current"), reads(Adapter), json=body)

    @endpoint
    def set_traffic(self, name: str, shares: Mapping[int, float]) -> Call[Adapter]:
        """Splits the requests for `name` among versions, `{1: 0.9, 2: 0.1}`; none: all to the current one."""
        body = {str(version): share for version, share in shares.items()}
        return Call("PUT", path("adapters", name, "traffic"), reads(Adapter), json=body)

    @endpoint
    def delete(self, name: str, version: int) -> Call[None]:
        """Raises NotFoundError, or ConflictError for the current version."""
        return Call("DELETE", path("adapters", name, "versions", version), read_nothing)

    @endpoint
    def import_(
        self,
        file: str | Path | bytes,
        name: str,
        *,
        filename: str | None = None,
        prompt: Mapping[str, Any] | None = None,
        source: str | None = None,
        target: str | None = None,
        description: str | None = None,
        make_current: bool = False,
    ) -> Call[AdapterVersion]:
        """Sends a PEFT folder, as zip or tar, which becomes the next version of `name`.

        What another Dragoman exported brings its own prompt and languages; others need them. The first version of
        a name becomes current, later ones where `make_current` says so. Raises InvalidError unless it is plain
        LoRA safetensors that fits the server's base model.
        """
        parts = {
            "name": name,
            "prompt": None if prompt is None else json.dumps(prompt),
            "source": source,
            "target": target,
            "description": description,
            "make_current": "true" if make_current else None,
        }
        return Call(
            "POST",
            "/adapters",
            reads(AdapterVersion),
            form={k: v for k, v in parts.items() if v is not None},
            upload=Upload.of(file, filename),
            idempotent=False,  # each time it is one version more
        )


class Adapters(AdapterEndpoints, Resource):
    def rollback(self, name: str) -> Adapter:
        """Makes the version before the current one current."""
        return self.promote(name, version_before(self.get(name)))

    def download(self, name: str, version: int, target: str | Path) -> Path:
        """Writes the version's PEFT folder as a zip to the file `target`, which appears only when it is whole."""
        return save(self._transport, download_call(name, version), target)


class AsyncAdapters(AdapterEndpoints, AsyncResource):
    async def rollback(self, name: str) -> Adapter:
        """Makes the version before the current one current."""
        return await self.promote(name, version_before(await self.get(name)))

    async def download(self, name: str, version: int, target: str | Path) -> Path:
        """Writes the version's PEFT folder as a zip to the file `target`, which appears only when it is whole."""
        return await save_async(self._transport, download_call(name, version), target)


def download_call(name: str, version: int) -> Call[None]:
    return Call("GET", path("adapters", name, "versions", version, "download"), read_nothing)


def version_before(adapter: Adapter) -> int:
    """Raises DragomanError where there is none."""
    if adapter.previous is None:
        raise DragomanError(
            f"adapter {adapter.name} has no version before {adapter.current or 'a current one'}; "
            f"there are: {', '.join(map(str, adapter.versions))}"
        )
    return adapter.previous
