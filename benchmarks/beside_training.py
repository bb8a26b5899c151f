"""What requests feel while a job trains on the same device, and what the job feels of them.

    python -m benchmarks.beside_training                 both device policies, on this machine
    python -m benchmarks.beside_training --seconds 60    longer phases
    python -m benchmarks.beside_training --base phi3-mini  3.8 B random weights, no adapter; wants a GPU

One service (`python -m embedded`) per policy. Single requests come one after another with half a second between them,
as from somebody who types; "8 at once" keeps eight running all the time. The client computes on the same machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.measuring import apart
from benchmarks.random_model import make_phi3_mini
from dragoman import Client
from dragoman.errors import ConnectionFailedError
from dragoman.models import Job
from embedded.__main__ import claim_port

ROWS = Path(__file__).parents[1] / "examples" / "yoda.csv"
SENTENCE = "The old fisherman repaired his boat before the winter storm came."
AT_ONCE = 8
PAUSE_S = 0.5
POLICIES = ("share", "wait")
MAX_NEW_TOKENS = 48  # random weights never end an answer


@dataclass(frozen=True)
class Phase:
    """Seconds of single requests, tokens per second of eight at once; the job's steps per second beside each."""

    first_tokens: list[float]
    answers: list[float]
    tokens_per_second: float
    steps_beside_single: float | None
    steps_beside_many: float | None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="length of each phase")
    parser.add_argument("--base", default="", help="folder, hub name, or phi3-mini")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = str(apart(make_phi3_mini, Path(folder))) if args.base == "phi3-mini" else args.base
        _compare(base, args.seconds)


def _compare(base: str, seconds: float) -> None:
    adapter = "base" if base else "yoda"
    print(
        "| policy | | first token, p50 / p95, ms | answer, p50 / p95, ms | 8 at once, tokens/s | job's steps/s |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for policy in POLICIES:
        with tempfile.TemporaryDirectory() as folder, _service(folder, base, policy) as client:
            client.translate(SENTENCE, adapter=adapter, max_new_tokens=MAX_NEW_TOKENS)
            _print(policy, "no job", _measure(client, adapter, seconds, None), "")
            job = _start_job(client)
            alone = _steps_per_second(client, job, seconds)
            beside = _measure(client, adapter, seconds, job)
            _print(
                policy,
                "beside a job",
                beside,
                f"{alone:.2f} without requests, {beside.steps_beside_single:.2f} beside single ones, "
                f"{beside.steps_beside_many:.2f} beside 8 at once",
            )
            client.jobs.cancel(job.id)


@contextmanager
def _service(folder: str, base: str, policy: str) -> Iterator[Client]:
    port = claim_port("127.0.0.1", 0)
    environment = os.environ | {
        "DRAGOMAN_BASE_MODEL": base,
        "DRAGOMAN_DATA_DIR": folder,
        "DRAGOMAN_PORT": str(port),
        "DRAGOMAN_DEVICE_POLICY": policy,
        "DRAGOMAN_LOG_LEVEL": "WARNING",
    }
    with Path(folder, "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedded"], env=environment, stdout=log, stderr=log
        )
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                _wait_until_ready(client, process)
                yield client
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(client: Client, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if client.ready().ok:
                return
        except ConnectionFailedError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the service ended with exit code {process.returncode}")


def _start_job(client: Client) -> Job:
    config = {"training": {"num_train_epochs": 100, "logging_steps": 1}}
    job = client.jobs.create("beside", file=ROWS, config=config)
    while job.progress.step < 3:
        time.sleep(0.2)
        job = client.jobs.get(job.id)
    return job


def _measure(client: Client, adapter: str, seconds: float, job: Job | None) -> Phase:
    first_tokens, answers = [], []
    before, deadline = _reading(client, job), time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = time.monotonic()
        tokens = iter(
            client.translate(SENTENCE, adapter=adapter, max_new_tokens=MAX_NEW_TOKENS, stream=True)
        )
        next(tokens)
        first_tokens.append(time.monotonic() - started)
        for _ in tokens:
            pass
        answers.append(time.monotonic() - started)
        time.sleep(PAUSE_S)
    beside_single = _rate(before, _reading(client, job))
    before = _reading(client, job)
    speed = _many_at_once(client, adapter, seconds)
    return Phase(first_tokens, answers, speed, beside_single, _rate(before, _reading(client, job)))


def _many_at_once(client: Client, adapter: str, seconds: float) -> float:
    counts = [0] * AT_ONCE
    started = time.monotonic()

    def ask(number: int) -> None:
        while time.monotonic() < started + seconds:
            answer = client.translate(SENTENCE, adapter=adapter, max_new_tokens=MAX_NEW_TOKENS)
            counts[number] += answer.usage.completion_tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started)


def _steps_per_second(client: Client, job: Job, seconds: float) -> float:
    before = _reading(client, job)
    time.sleep(seconds)
    return _rate(before, _reading(client, job)) or 0.0


def _reading(client: Client, job: Job | None) -> tuple[float, int] | None:
    return (time.monotonic(), client.jobs.get(job.id).progress.step) if job else None


def _rate(before: tuple[float, int] | None, after: tuple[float, int] | None) -> float | None:
    return (after[1] - before[1]) / (after[0] - before[0]) if before and after else None


def _print(policy: str, what: str, phase: Phase, steps: str) -> None:
    print(
        f"| {policy} | {what} | {_both(phase.first_tokens)} | {_both(phase.answers)} "
        f"| {phase.tokens_per_second:.0f} | {steps} |",
        flush=True,
    )


def _both(seconds: list[float]) -> str:
    return f"{1e3 * median(seconds):.0f} / {1e3 * quantiles(seconds, n=20)[-1]:.0f}"


if __name__ == "__main__":
    main()
