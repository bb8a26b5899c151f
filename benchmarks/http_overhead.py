"""What HTTP takes of the engine's throughput: the same requests through Engine.submit and over HTTP, in turns.

    DRAGOMAN_NUM_THREADS=1 python -m benchmarks.http_overhead     a core for the engine, the other for the rest
    python -m benchmarks.http_overhead --pairs 20 --concurrency 128

One process holds the engine and the server, as the service does; the client is another process. Rounds alternate, since
a machine that others share changes within seconds; what counts is the median of the pairs' ratios. In both ways so many
requests run at once, and each is followed by another; --queued submits all at the same moment, so that no place is ever
empty. A second kind of round with another switch interval of the interpreter comes with --switch-interval.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles

from app.engine.engine import Engine
from app.main import create_app, create_server, keep_what_stays
from benchmarks.cases import MIXED_RANKS
from benchmarks.load import ask_all
from benchmarks.measuring import apart, make_requests, through_engine
from benchmarks.report import describe_machine
from benchmarks.serve import prepare
from core.base_model import EMBEDDED, locate_base_model
from core.settings import Settings
from core.volume import Volume
from embedded.__main__ import claim_port
from embedded.redis_server import EmbeddedRedis


@dataclass(frozen=True)
class Round:
    """Seconds of one round; `cpu_s` and `other_cpu_s`: of the engine's thread, and of the rest of its process."""

    wall_s: float
    cpu_s: float
    other_cpu_s: float
    client_cpu_s: float
    num_steps: int


def main() -> None:
    args = _parse_args()
    ranks = [MIXED_RANKS[i % len(MIXED_RANKS)] for i in range(args.adapters)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = root / "base" if args.base == "phi3-mini" else locate_base_model(args.base)
        volume = Volume(root / "data")
        volume.create()
        print(apart(describe_machine), flush=True)
        cases, versions = apart(prepare, args.base, base, volume, ranks, args.requests)
        with (
            _serving(base, volume, args.concurrency) as (url, engine),
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client,
        ):
            requests = make_requests(url, cases, versions)
            at_once = None if args.queued else args.concurrency

            def submit() -> float:
                through_engine(engine, cases, versions, at_once)
                return 0.0

            def ask(switch_interval_s: float) -> float:
                before = sys.getswitchinterval()
                sys.setswitchinterval(switch_interval_s)
                try:
                    return client.submit(ask_all, url, requests, args.concurrency).result()
                finally:
                    sys.setswitchinterval(before)

            ways = {"Engine.submit": submit, "HTTP": partial(ask, sys.getswitchinterval())}
            for interval_s in args.switch_interval:
                ways[f"HTTP, switch interval {1e3 * interval_s:g} ms"] = partial(ask, interval_s)
            rounds = _alternate(ways, engine, args.pairs)
    _print(rounds, sum(c.num_new for c in cases), len(cases))


@contextmanager
def _serving(base: Path, volume: Volume, concurrency: int) -> Iterator[tuple[str, Engine]]:
    """The server in a thread of this process, and the engine that it asks."""
    with EmbeddedRedis(volume.root) as redis:
        settings = Settings(
            redis_url=redis.url,
            data_dir=volume.root,
            base_model="" if base == EMBEDDED else str(base),
            port=claim_port("127.0.0.1", 0),
            max_running=concurrency,
            log_level="WARNING",
        )
        app = create_app(settings, on_loaded=keep_what_stays)
        server = create_server(app, settings)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            services = app.state.services
            while not server.started or (services.serving is None and not services.load_error):
                if not thread.is_alive():
                    raise RuntimeError("the server ended before it was ready")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{settings.port}", services.require_serving().engine
        finally:
            server.should_exit = True
            thread.join()


def _alternate(
    ways: dict[str, Callable[[], float]], engine: Engine, num_pairs: int
) -> dict[str, list[Round]]:
    """After a warm-up; every other time in the reverse order."""
    thread = next(t for t in threading.enumerate() if t.name == "engine")
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)

    def take(run: Callable[[], float]) -> Round:
        steps, process_s = engine.stats().num_steps, time.process_time()
        wall_s, cpu_s = time.perf_counter(), time.clock_gettime(clock)
        client_cpu_s = run()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.clock_gettime(clock) - cpu_s
        other_s = time.process_time() - process_s - cpu_s
        return Round(wall_s, cpu_s, other_s, client_cpu_s, engine.stats().num_steps - steps)

    for run in ways.values():
        take(run)
    rounds: dict[str, list[Round]] = {way: [] for way in ways}
    for pair in range(num_pairs):
        for way in list(ways)[:: -1 if pair % 2 else 1]:
            rounds[way].append(take(ways[way]))
        print(f"  {pair + 1} of {num_pairs}", end="\r", file=sys.stderr, flush=True)
    return rounds


def _print(rounds: dict[str, list[Round]], num_tokens: int, num_requests: int) -> None:
    print(
        "\n| medians | tokens/s | of Engine.submit (quartiles) | steps | engine's thread, s: processor | waiting "
        "| others, ms a request: server | client |\n|---|---|---|---|---|---|---|---|"
    )
    reference = rounds["Engine.submit"]
    for way, taken in rounds.items():
        ratios = [r.wall_s / t.wall_s for r, t in zip(reference, taken, strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(
            f"| {way} | {num_tokens / median(t.wall_s for t in taken):,.0f} "
            f"| {median(ratios):.1%} ({low:.1%} to {high:.1%}) "
            f"| {median(t.num_steps for t in taken):.0f} "
            f"| {median(t.cpu_s for t in taken):.2f} "
            f"| {median(t.wall_s - t.cpu_s for t in taken):.2f} "
            f"| {1e3 * median(t.other_cpu_s for t in taken) / num_requests:.2f} "
            f"| {1e3 * median(t.client_cpu_s for t in taken) / num_requests:.2f} |"
        )


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=8, help="number of adapters")
    parser.add_argument("--concurrency", type=int, default=64, help="requests at once")
    parser.add_argument("--requests", type=int, default=256, help="requests in a round")
    parser.add_argument("--pairs", type=int, default=12, help="rounds of each way")
    parser.add_argument(
        "--base", default=Settings().base_model, help="folder, hub name, or phi3-mini"
    )
    parser.add_argument(
        "--queued", action="store_true", help="submit all to the engine at the same moment"
    )
    parser.add_argument(
        "--switch-interval", type=float, nargs="*", default=[], help="others to try, in seconds"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
