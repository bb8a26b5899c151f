"""`python -m embedded` as `make serve` runs it, which can be stopped and started again in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from embedded.__main__ import claim_port

ROOT = Path(__file__).resolve().parents[2]
_START_S = 180
_STOP_S = 60


class Service:
    """One service on a free port, with a data folder of its own. `client` calls its API."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = claim_port("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._port}/"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def start(self) -> None:
        environment = os.environ | {
            "DRAGOMAN_PORT": str(self._port),
            "DRAGOMAN_DATA_DIR": str(self._folder / "data"),
            "DRAGOMAN_JOB_LEASE_S": "3",
            "PYTHONPATH": str(ROOT),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "embedded"],
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_ready, _START_S, "the service is not ready")

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(_STOP_S) == 0, self._log.read_text()
        self._process = None

    def close(self) -> None:
        self.client.close()
        if self._process:
            self.stop()

    def get(self, path: str) -> Any:
        response = self.client.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    def train(self, adapter: str, rows: str, *, num_holdout: int = 2, **training: Any) -> str:
        """Starts a job on CSV rows through the API; its version becomes current. Returns its id."""
        dataset = self.client.post("/datasets", files={"file": ("rows.csv", rows.encode())}).json()
        config = {"training": training, "evaluation": {"holdout": num_holdout, "promote": "always"}}
        body = {"dataset_id": dataset["id"], "adapter": adapter, "config": config}
        response = self.client.post("/jobs", json=body)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    @property
    def _log(self) -> Path:
        return self._folder / "log.txt"

    def _is_ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False


def once(name: str) -> str:
    """A name for an adapter of this try alone: a second one finds the service as the first has left it."""
    return f"{name}-{uuid4().hex[:6]}"


def wait_until(condition: Any, timeout_s: float, message: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.2)
