"""Processes that are killed and come again: a Redis with an append-only file, a server."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import redis

from core.settings import Settings
from embedded.__main__ import claim_port
from embedded.redis_server import find_redis_server
from tests.worker.conftest import ROOT


class RedisProcess:
    """On a TCP port, so that it comes back where it was."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._port = claim_port("127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(str(find_redis_server()), "--port", str(self._port), "--dir", str(self._folder)),
                *("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"),
            ],
            stdout=subprocess.DEVNULL,
        )
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert self._process.poll() is None
                    time.sleep(0.05)

    def stop(self, *, hard: bool) -> None:
        assert self._process
        self._process.kill() if hard else self._process.terminate()
        self._process.wait()


class ServerProcess:
    """`python -m app.main` on one port, with the embedded base."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._port = claim_port("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = log
        self._env = os.environ | {
            "DRAGOMAN_REDIS_URL": settings.redis_url,
            "DRAGOMAN_DATA_DIR": str(settings.data_dir),
            "DRAGOMAN_PORT": str(self._port),
            "DRAGOMAN_JOB_LEASE_S": str(settings.job_lease_s),
            "DRAGOMAN_NUM_THREADS": "1",
            "DRAGOMAN_BASE_MODEL": settings.base_model,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.main"], cwd=ROOT, env=self._env, stdout=log, stderr=log
            )

    def wait_until_ready(self, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.process
            assert self.process.poll() is None, self._log.read_text()
            try:
                if httpx.get(f"{self.url}/ready").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
