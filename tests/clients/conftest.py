"""A server that listens on a port, for clients that know nothing of this project."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from app.main import create_app
from core.settings import Settings
from embedded.redis_server import EmbeddedRedis
from tests.worker.conftest import (  # noqa: F401  a worker to fine-tune with
    start_worker,
    tiny_base,
    worker_settings,
)


@contextmanager
def running_server(settings: Settings) -> Iterator[str]:
    """The application, ready to serve; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 120
    try:
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        while httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        server.should_exit = True
        thread.join(120)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def boxed_url(
    _redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The embedded base with the adapters that come in the box."""
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path_factory.mktemp("boxed") / "data",
        redis_url=f"{_redis_server.url}?db=2",
        device="cpu",
        num_threads=1,  # more of them spin where tests share the processors, and take seconds for a token
    )
    with running_server(settings) as url:
        yield url
