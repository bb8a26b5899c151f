"""The adapters on the volume, and the languages they translate between."""

from collections import defaultdict
from contextlib import suppress

from fastapi import APIRouter

from app.deps import EngineDep, RegistryDep, TranslatorDep
from app.languages import display_name, normalise
from app.schemas import AdapterOut, LanguageOut, VersionOut
from core.adapters import Adapter, AdapterRegistry
from core.errors import ServiceError

router = APIRouter(tags=["adapters"])


@router.get("/adapters")
def list_adapters(registry: RegistryDep, engine: EngineDep) -> list[AdapterOut]:
    """All adapters, by name."""
    resident = {ref.partition("@")[0] for ref in engine.resident_adapters}
    described = []
    for adapter in registry.all():
        with suppress(ServiceError):  # its seal is unreadable: asked for by name, it says so
            described.append(_describe(adapter, registry, adapter.name in resident))
    return described


@router.get("/adapters/{name}")
def get_adapter(name: str, registry: RegistryDep, engine: EngineDep) -> AdapterOut:
    """One adapter."""
    resident = {ref.partition("@")[0] for ref in engine.resident_adapters}
    return _describe(registry.get(name), registry, name in resident)


@router.get("/adapters/{name}/versions/{number}")
def get_version(name: str, number: int, registry: RegistryDep) -> VersionOut:
    """One version with its seal: what it was trained on and how it is served."""
    adapter = registry.get(name)
    version = registry.version(name, number)
    return VersionOut(
        ref=version.ref,
        name=name,
        version=number,
        current=adapter.current == number,
        size_bytes=sum(f.stat().st_size for f in version.path.iterdir()),
        seal=version.seal,
    )


@router.get("/languages")
def list_languages(translator: TranslatorDep) -> list[LanguageOut]:
    """The source languages and, for each, the targets; LibreTranslate's shape."""
    targets: defaultdict[str, set[str]] = defaultdict(set)
    for version in translator.current_versions():
        targets[normalise(version.seal.source)].add(normalise(version.seal.target))
    return [
        LanguageOut(code=code, name=display_name(code), targets=sorted(found))
        for code, found in sorted(targets.items())
    ]


def _describe(adapter: Adapter, registry: AdapterRegistry, resident: bool) -> AdapterOut:
    shown = adapter.current or adapter.versions[-1]
    seal = registry.version(adapter.name, shown).seal
    return AdapterOut(
        name=adapter.name,
        source=seal.source,
        target=seal.target,
        current=adapter.current,
        versions=adapter.versions,
        resident=resident,
        description=seal.description,
    )
