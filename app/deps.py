"""How routes obtain things, and nothing else. Async, since FastAPI sends plain functions to its thread pool."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from app.engine.engine import Engine
from app.services import Services, Serving
from app.translator import Translator
from core.adapters import AdapterRegistry
from core.datasets import DatasetStore
from core.job_store import JobStore
from core.settings import Settings
from core.volume import Volume


async def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_settings(services: ServicesDep) -> Settings:
    return services.settings


async def get_volume(services: ServicesDep) -> Volume:
    return services.volume


async def get_registry(services: ServicesDep) -> AdapterRegistry:
    return services.registry


async def get_datasets(services: ServicesDep) -> DatasetStore:
    return services.datasets


async def get_jobs(services: ServicesDep) -> JobStore:
    return services.jobs


async def get_engine(services: ServicesDep) -> Engine:
    return services.require_serving().engine


async def get_translator(services: ServicesDep) -> Translator:
    return services.require_serving().translator


async def get_serving(services: ServicesDep) -> Serving:
    return services.require_serving()


async def get_token_counter(services: ServicesDep) -> Callable[[list[str]], list[int]]:
    return services.require_serving().count_tokens


SettingsDep = Annotated[Settings, Depends(get_settings)]
VolumeDep = Annotated[Volume, Depends(get_volume)]
RegistryDep = Annotated[AdapterRegistry, Depends(get_registry)]
DatasetsDep = Annotated[DatasetStore, Depends(get_datasets)]
JobsDep = Annotated[JobStore, Depends(get_jobs)]
EngineDep = Annotated[Engine, Depends(get_engine)]
TranslatorDep = Annotated[Translator, Depends(get_translator)]
ServingDep = Annotated[Serving, Depends(get_serving)]
TokenCounterDep = Annotated[Callable[[list[str]], list[int]], Depends(get_token_counter)]
