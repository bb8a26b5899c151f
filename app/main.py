"""The server: create_app(), what its life begins and ends with, and `python -m app.main`."""

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from app import openapi, problems
from app.allowed_hosts import AllowedHostsMiddleware
from app.body_limit import BodyLimitMiddleware
from app.draining import DrainingMiddleware
from app.http_protocol import HttpProtocol
from app.metrics import Metrics, MetricsMiddleware
from app.routes import (
    adapters,
    curve,
    datasets,
    exports,
    job_events,
    jobs,
    libretranslate,
    openai,
    pages,
    system,
    translate,
)
from app.services import Services
from core import __version__
from core.settings import Settings

_DESCRIPTION = (
    "Turns a parallel corpus into a live translator: one 4-bit base model, many adapters."
)
_DRAIN_INTERVAL_S = 0.05
_UPLOAD_PATHS = ("/datasets", "/jobs", "/adapters", "/v1/files")


def create_app(
    settings: Settings,
    *,
    on_loaded: Callable[[], None] = lambda: None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The ASGI application. `on_loaded` and `on_failure`: see Services.start."""
    services = Services(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await services.start(on_loaded, on_failure)
        try:
            yield
        finally:
            await services.stop()

    app = FastAPI(
        title="Dragoman",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # app.routes.pages has it; FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.services = services
    app.state.metrics = Metrics(services)
    app.add_middleware(
        BodyLimitMiddleware,
        max_body_mb=settings.max_body_mb,
        max_upload_mb=settings.max_upload_mb,
        upload_paths=_UPLOAD_PATHS,
    )
    app.add_middleware(DrainingMiddleware, stopping=services.stopping)
    if settings.allowed_hosts != "*":
        hosts = f"{settings.host},{settings.allowed_hosts}"
        app.add_middleware(AllowedHostsMiddleware, hosts=hosts)
    app.add_middleware(MetricsMiddleware, metrics=app.state.metrics)
    problems.install(app)
    rooms = (
        *(translate, libretranslate, adapters, datasets, exports),
        *(jobs, job_events, curve, openai, system, pages),
    )
    for room in rooms:
        app.include_router(room.router)
    openapi.install(app)
    return app


class _Server(uvicorn.Server):
    """Finishes what it has begun before it closes its doors, so that whoever comes meanwhile is told to come again.

    uvicorn alone closes its socket first. Streams of events, which may go on for hours, end at once.
    """

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event, *, grace_s: float) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        deadline_s = time.monotonic() + self._grace_s
        while self.server_state.tasks and time.monotonic() < deadline_s and not self.force_exit:
            await asyncio.sleep(_DRAIN_INTERVAL_S)
        self.config.timeout_graceful_shutdown = 1  # for bytes that are on their way
        await super().shutdown(sockets)


def create_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """Serves what create_app gave for these settings, with `run()`."""
    return _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=HttpProtocol,
            log_level=settings.log_level.lower(),
            access_log=settings.log_level == "DEBUG",
        ),
        app.state.services.stopping,
        grace_s=settings.stop_grace_s,
    )


def keep_what_stays() -> None:
    """Keeps the collector from what lives as long as the process: 560,000 objects, 313 ms in which nobody is answered."""
    gc.collect()
    gc.freeze()


def main() -> int:
    """Serves until SIGTERM or SIGINT; 1 if the base model cannot be loaded, or its device fails for good."""
    settings = Settings()
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = True
        server.should_exit = True

    app = create_app(settings, on_loaded=keep_what_stays, on_failure=give_up)
    server = create_server(app, settings)

    def stop(*_: object) -> None:
        server.should_exit = True

    # Once it has stopped, uvicorn raises the signal again, for the handler that was there before: a stop that was
    # asked for is no failure.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    server.run()
    return 1 if failed or not server.started else 0


if __name__ == "__main__":
    sys.exit(main())
