"""How tokens a second are taken: each way in a process of its own, after a warm-up, only tokens that were asked for."""

import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx

from app.engine.cpu_threads import stay_single_threaded
from app.engine.engine import Engine, EngineLimits
from app.engine.sequence import SamplingParams, Sequence, Update
from app.model.loading import load_base_model
from benchmarks.cases import Case
from benchmarks.load import Request, ask_all, make_request
from core.adapter_version import AdapterVersion
from core.base_model import EMBEDDED
from core.settings import Settings
from core.volume import Volume
from embedded.__main__ import claim_port
from embedded.redis_server import EmbeddedRedis


@dataclass(frozen=True)
class Result:
    way: str
    tokens_per_second: float
    outputs: list[list[int]]


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Runs a part in a process of its own, so that none inherits another's threads, caches or memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure(
    way: str, cases: list[Case], run: Callable[[], list[list[int]]], rounds: int = 1
) -> Result:
    """The best of `rounds`, after one warm-up where there are several."""
    speeds = []
    outputs: list[list[int]] = []
    for _ in range(rounds + (rounds > 1)):
        started = time.perf_counter()
        outputs = run()
        speeds.append(sum(c.num_new for c in cases) / (time.perf_counter() - started))
    speed = max(speeds[1:] or speeds)
    print(f"  {way}: {speed:,.0f} tokens/s", flush=True)
    return Result(way, speed, outputs)


@contextmanager
def running_engine(base: Path, **limits: int) -> Iterator[Engine]:
    settings = Settings(**limits)
    stay_single_threaded()  # all threads are the engine's, as in the service
    model = load_base_model(base, base_weights=settings.base_weights)
    engine = Engine(
        model, EngineLimits(**{f: getattr(settings, f) for f in EngineLimits.__slots__})
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def through_engine(
    engine: Engine,
    cases: list[Case],
    versions: list[AdapterVersion] | None,
    concurrency: int | None = None,
) -> list[list[int]]:
    """`concurrency`: so many at once, one following another; None: all are queued at the same moment."""
    done: queue.Queue[tuple[int, Update]] = queue.Queue()

    def make(i: int, case: Case) -> Sequence:
        params = SamplingParams(case.num_new, frozenset())
        version = versions[case.adapter] if versions else None
        return Sequence(case.prompt_ids, params, version, lambda update: done.put((i, update)))

    waiting = iter([make(i, case) for i, case in enumerate(cases)])
    engine.submit(*islice(waiting, concurrency))
    outputs: list[list[int]] = [[] for _ in cases]
    for _ in cases:
        i, update = done.get()
        if update.error:
            raise update.error
        outputs[i] = update.token_ids
        engine.submit(*islice(waiting, 1))
    return outputs


@contextmanager
def running_service(base: Path, volume: Volume, concurrency: int) -> Iterator[str]:
    """The real server in a process of its own."""
    port = claim_port("127.0.0.1", 0)
    with EmbeddedRedis(volume.root) as redis:
        environment = os.environ | {
            "DRAGOMAN_REDIS_URL": redis.url,
            "DRAGOMAN_DATA_DIR": str(volume.root),
            "DRAGOMAN_BASE_MODEL": "" if base == EMBEDDED else str(base),
            "DRAGOMAN_PORT": str(port),
            "DRAGOMAN_MAX_RUNNING": str(concurrency),
            "DRAGOMAN_LOG_LEVEL": "WARNING",
        }
        process = subprocess.Popen([sys.executable, "-m", "app.main"], env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    if httpx.get(f"{url}/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise RuntimeError("the server ended before it was ready") from None
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def make_requests(url: str, cases: list[Case], versions: list[AdapterVersion]) -> list[Request]:
    return [make_request(url, c.text, versions[c.adapter].ref, c.num_new) for c in cases]


def through_http(
    url: str, cases: list[Case], versions: list[AdapterVersion], concurrency: int
) -> list[list[int]]:
    ask_all(url, make_requests(url, cases, versions), concurrency)
    return []
