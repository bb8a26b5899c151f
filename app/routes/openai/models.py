"""Models: the adapters, their versions, and the bare base."""

from fastapi import APIRouter

from app.deps import RegistryDep, TranslatorDep
from app.routes.openai.shapes import Deleted, Model, Page
from app.translator import Route, Translator
from core.adapter_version import AdapterVersion
from core.adapters import BASE
from core.errors import InvalidError, NotFoundError

router = APIRouter(prefix="/v1")


@router.get("/models")
def list_models(translator: TranslatorDep, registry: RegistryDep) -> Page[Model]:
    """The bare base, each adapter, and each version that this base model can serve."""
    found = [_model(BASE)]
    current = {adapter.name: adapter.current for adapter in registry.all()}
    for version in translator.servable_versions():
        if version.version == current.get(version.name):
            found.append(_model(version.name, version))
        found.append(_model(version.ref, version))
    return Page(data=found)


@router.get("/models/{model}")
def get_model(model: str, translator: TranslatorDep) -> Model:
    """One model."""
    return _model(model, find_route(translator, model).version)


@router.delete("/models/{model}")
def delete_model(model: str, registry: RegistryDep, translator: TranslatorDep) -> Deleted:
    """Delete a version, such as `yoda@1`, that is neither current nor part of a canary."""
    version = find_route(translator, model).version
    if version is None or version.ref != model or version.is_checkpoint:
        raise InvalidError(
            f"{model[:80]!r} is no version; one such as 'yoda@1' can be deleted",
            code="model_not_deletable",
        )
    registry.delete(version.name, version.version)
    return Deleted(id=model, object="model")


def find_route(translator: Translator, model: str) -> Route:
    """Raises NotFoundError `model_not_found`, with the list of what exists."""
    try:
        return translator.resolve(model, None, None, [])
    except NotFoundError as error:
        raise NotFoundError(error.message, code="model_not_found", **error.extra) from error


def _model(name: str, version: AdapterVersion | None = None) -> Model:
    created = int(version.seal.created_at.timestamp()) if version else 0
    return Model(id=name, created=created)
