"""The adapters on the volume: what there is, which version answers, and how versions come and go."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from app.adapter_archive import pack
from app.adapter_import import import_adapter
from app.deps import EngineDep, RegistryDep, ServicesDep, TranslatorDep
from app.forms import (
    UnsupportedMediaTypeError,
    at_most,
    form_values,
    media_type,
    opened_form,
    parse_json,
    validate,
)
from app.schemas import AdapterImport, AdapterOut, CurrentVersion, VersionOut
from app.services import Services
from core.adapter_version import AdapterVersion
from core.adapters import Adapter, AdapterRegistry
from core.errors import InvalidError, ServiceError

router = APIRouter(prefix="/adapters", tags=["adapters"])

_MIB = 1024 * 1024
_MAX_FIELDS = 100
_Weights = Annotated[
    dict[
        Annotated[int, Field(ge=1, lt=10**9)],
        Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)],
    ],
    BeforeValidator(at_most(_MAX_FIELDS)),
    Body(
        max_length=_MAX_FIELDS,
        description="version -> share; the shares come to 1. Empty: the canary ends",
        examples=[{"1": 0.9, "2": 0.1}],
    ),
]
_IMPORT_FORM = {
    "type": "object",
    "required": ["file", "name"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "a PEFT folder as zip, tar or tar.gz: adapter_config.json and adapter_model.safetensors",
        },
        "name": {"type": "string", "description": "the adapter to add a version to, or a new one"},
        "prompt": {
            "type": "string",
            "description": 'JSON: {"system": …, "template": "{text}"}; empty: that of the archive\'s seal',
        },
        "source": {"type": "string", "description": "language code; empty: the seal's"},
        "target": {"type": "string", "description": "language code; empty: the seal's"},
        "description": {"type": "string"},
        "make_current": {"type": "boolean", "description": "the first version of a name is anyway"},
    },
}


@router.get("")
def list_adapters(registry: RegistryDep, engine: EngineDep) -> list[AdapterOut]:
    """All adapters, by name."""
    resident = {ref.partition("@")[0] for ref in engine.resident_adapters}
    described = []
    for adapter in registry.all():
        with suppress(ServiceError):  # its seal is unreadable: asked for by name, it says so
            described.append(_describe(adapter, registry, adapter.name in resident))
    return described


@router.post(
    "",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _IMPORT_FORM}},
        }
    },
)
async def add_adapter(request: Request, response: Response, services: ServicesDep) -> VersionOut:
    """Import a PEFT folder as a new version: plain LoRA, in safetensors, that fits this base model.

    An archive that another Dragoman made keeps its prompt, stop tokens and languages, where the form names no others.
    """
    kind = media_type(request)
    if kind != "multipart/form-data":
        raise UnsupportedMediaTypeError(
            f"content-type {kind[:80]!r} is not accepted; send multipart/form-data with a file"
        )
    async with opened_form(request, max_fields=20) as form:
        values = {key: value for key, value in form_values(form).items() if value != ""}
        file = values.pop("file", None)
        if not isinstance(file, UploadFile):
            raise InvalidError(
                "the form has no `file`; send a PEFT folder as zip, tar or tar.gz",
                code="file_missing",
            )
        if isinstance(values.get("prompt"), str):
            values["prompt"] = parse_json(values["prompt"], "prompt")
        wanted = validate(AdapterImport, values)
        version = await run_in_threadpool(_import, file, wanted, services)
    response.headers["Location"] = f"{router.prefix}/{version.name}/versions/{version.version}"
    return await run_in_threadpool(_describe_version, version, services.registry)


@router.get("/{name}")
def get_adapter(name: str, registry: RegistryDep, engine: EngineDep) -> AdapterOut:
    """One adapter."""
    resident = {ref.partition("@")[0] for ref in engine.resident_adapters}
    return _describe(registry.get(name), registry, name in resident)


@router.put("/{name}/current")
def make_current(
    name: str,
    body: Annotated[CurrentVersion, BeforeValidator(at_most(_MAX_FIELDS))],
    registry: RegistryDep,
    translator: TranslatorDep,
    engine: EngineDep,
) -> AdapterOut:
    """Promote a version, or roll back to one, in one step. A canary ends with it."""
    if body.version is not None:
        version = registry.version(name, body.version)
        translator.check_base(version.seal, f"adapter {version.ref}")
    registry.promote(name, body.version)
    return get_adapter(name, registry, engine)


@router.put("/{name}/traffic")
def divide_traffic(
    name: str,
    weights: _Weights,
    registry: RegistryDep,
    translator: TranslatorDep,
    engine: EngineDep,
) -> AdapterOut:
    """Start a canary: requests that name the adapter but no version are answered by these versions, by chance.

    The answer's `adapter` says which it was. It ends when a version is made current.
    """
    registry.get(name)
    for number in weights:
        version = registry.version(name, number)
        translator.check_base(version.seal, f"adapter {version.ref}")
    registry.set_traffic(name, weights)
    return get_adapter(name, registry, engine)


@router.delete("/{name}/traffic", status_code=204)
def end_canary(name: str, registry: RegistryDep) -> None:
    """End a canary: the current version answers all requests again."""
    registry.set_traffic(name, {})


@router.get("/{name}/versions/{number}")
def get_version(name: str, number: int, registry: RegistryDep) -> VersionOut:
    """One version with its seal: what it was trained on and how it is served."""
    return _describe_version(registry.version(name, number), registry)


@router.delete("/{name}/versions/{number}", status_code=204)
def delete_version(name: str, number: int, registry: RegistryDep) -> None:
    """Delete a version that is neither current nor part of a canary. Its number is not given out again."""
    registry.delete(name, number)


@router.get(
    "/{name}/versions/{number}/download",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "a PEFT folder"}},
)
def download_version(name: str, number: int, registry: RegistryDep) -> StreamingResponse:
    """A version as a zip that plain PEFT loads once it is unpacked; the same bytes each time."""
    version = registry.version(name, number)
    return StreamingResponse(
        pack(version.path),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}-{number}.zip"'},
    )


def _import(file: UploadFile, wanted: AdapterImport, services: Services) -> AdapterVersion:
    return import_adapter(
        file.file,
        wanted,
        serving=services.require_serving(),
        registry=services.registry,
        volume=services.volume,
        max_bytes=services.settings.max_upload_mb * _MIB,
    )


def _describe(adapter: Adapter, registry: AdapterRegistry, resident: bool) -> AdapterOut:
    shown = adapter.current or adapter.versions[-1]
    seal = registry.version(adapter.name, shown).seal
    return AdapterOut(
        **adapter.model_dump(),
        source=seal.source,
        target=seal.target,
        resident=resident,
        description=seal.description,
    )


def _describe_version(version: AdapterVersion, registry: AdapterRegistry) -> VersionOut:
    return VersionOut(
        ref=version.ref,
        name=version.name,
        version=version.version,
        current=registry.get(version.name).current == version.version,
        size_bytes=sum(f.stat().st_size for f in version.path.iterdir()),
        seal=version.seal,
    )
