"""The server is killed during uploads, streams and events: what it said yes to is there, and nothing is there in halves."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from core.settings import Settings
from tests.e2e.chaos.conftest import config, faults, wait_for
from tests.e2e.chaos.processes import ServerProcess
from tests.e2e.chaos.tally import Tally, is_whole
from tests.worker.conftest import ROWS, Jobs, WorkerProcess

pytestmark = pytest.mark.e2e


@pytest.fixture
def server(worker_settings: Settings, tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(worker_settings, tmp_path / "server.log")
    server.start()
    server.wait_until_ready()
    yield server
    server.kill()


class Client:
    """Goes on whatever happens: each job has its Idempotency-Key, events are followed by Last-Event-ID."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.ids: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.stop = threading.Event()
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._upload, self._translate, self._follow)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, num_steps: int) -> None:
        key = uuid4().hex
        rows = "".join(
            json.dumps({"prompt": r.prompt, "completion": r.completion}) + "\n" for r in ROWS
        )
        while True:
            try:
                answer = httpx.post(
                    f"{self._url}/jobs",
                    files={"file": ("rows.jsonl", rows.encode())},
                    data={"adapter": "server", "config": json.dumps(config(num_steps))},
                    headers={"Idempotency-Key": key},
                    timeout=60,
                )
                if answer.status_code == httpx.codes.ACCEPTED:
                    self.ids.append(answer.json()["id"])
                    return
                assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
            except httpx.TransportError:
                pass
            time.sleep(0.2)

    def join(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _upload(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            lines = "".join(f"A sentence {number}-{i},Another {i}\n" for i in range(5000))
            try:
                file = ("a.csv", b"prompt,completion\n" + lines.encode())
                httpx.post(f"{self._url}/datasets", files={"file": file}, timeout=60)
            except httpx.TransportError:
                time.sleep(0.2)

    def _translate(self) -> None:
        body = {"q": "The soup is cold.", "adapter": "base", "stream": True, "max_new_tokens": 200}
        while not self.stop.is_set():
            try:
                with httpx.stream(
                    "POST", f"{self._url}/translate", json=body, timeout=60
                ) as answer:
                    for _ in answer.iter_lines():
                        pass
            except httpx.TransportError:
                time.sleep(0.2)

    def _follow(self) -> None:
        """The events of the first job, over as many connections as it takes."""
        while not self.ids:
            time.sleep(0.05)
        url = f"{self._url}/jobs/{self.ids[0]}/events"
        while not self.stop.is_set():
            headers = {"Last-Event-ID": self.events[-1][0]} if self.events else {}
            try:
                with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
                    event: dict[str, str] = {}
                    for line in answer.iter_lines():
                        name, _, value = line.partition(": ")
                        event[name] = value
                        if not line and "id" in event:
                            self.events.append((event["id"], event["event"]))
                            event = {}
                if self.events and self.events[-1][1] == "done":
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)


def test_killed_server(
    server: ServerProcess,
    jobs: Jobs,
    start_worker: Callable[..., WorkerProcess],
    chance: random.Random,
) -> None:
    num_kills = faults(1, 8)
    worker = start_worker()
    client = Client(server.url)
    client.start()
    for _ in range(num_kills):
        submitting = threading.Thread(target=client.submit, args=(20,))
        submitting.start()
        time.sleep(chance.uniform(0.2, 3.0))
        server.kill()
        server.start()
        server.wait_until_ready()
        submitting.join(240)
        assert not submitting.is_alive()
    wait_for(jobs, client.ids)
    deadline = time.monotonic() + 120
    while not client.events or client.events[-1][1] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.join()
    # All events, in order, each once.
    told = jobs.store._redis.xrange(f"dragoman:job:{client.ids[0]}:events")
    assert [event_id for event_id, _ in client.events] == [event_id for event_id, _ in told]
    assert len(set(client.ids)) == num_kills
    assert len(jobs.store.find(limit=100)) == num_kills, "a retried submission made a job more"
    datasets = httpx.get(f"{server.url}/datasets", timeout=60)
    assert datasets.status_code == httpx.codes.OK
    on_volume = {p.name for p in jobs.volume.datasets.iterdir()}
    assert {d["id"] for d in datasets.json()} == on_volume, "no half dataset"
    assert is_whole(jobs.registry)
    Tally(jobs, client.ids).check("server killed", num_kills)
    assert worker.stop() == 0
