"""The real service, as `make serve` starts it, behind the real client."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dragoman
from tests.dragoman.servers import CuttingProxy, ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
YODA = ROOT / "examples" / "yoda.csv"


@contextmanager
def running_service(folder: Path) -> Iterator[str]:
    """Redis, worker and server of their own, with the adapters in the box; yields the URL. `folder` takes their files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "DRAGOMAN_PORT": str(port),
        "DRAGOMAN_DATA_DIR": str(folder / "data"),
        # One that spins on a machine shared with other tests takes seconds for a token.
        "DRAGOMAN_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedded"], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            with dragoman.Client(url) as client:
                client.wait_until_ready(180)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, (folder / "log.txt").read_text()


@pytest.fixture(scope="session")
def service_url(
    _no_settings_from_outside: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with running_service(tmp_path_factory.mktemp("service")) as url:
        yield url


@pytest.fixture
def client(service_url: str) -> Iterator[dragoman.Client]:
    with dragoman.Client(service_url, timeout_s=300) as client:
        yield client


@pytest.fixture
def proxy(service_url: str) -> Iterator[CuttingProxy]:
    with CuttingProxy(service_url) as proxy:
        yield proxy


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def unused_url() -> Iterator[str]:
    """Nobody listens there, nor will as long as the test lasts; who would may find out that it is free."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
