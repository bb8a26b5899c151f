"""Serving many adapters at once: this service against what PEFT offers, on one base, in one run.

    python -m benchmarks.serve                          the embedded base, 8 adapters, 128 at once
    python -m benchmarks.serve --adapters 16 --concurrency 64
    python -m benchmarks.serve --base phi3-mini         3.8 B random weights; wants a GPU
    python -m benchmarks.serve --zipf 1000              adapters by the thousand, against one

(a) set_adapter + generate, one request after the other; (b) generate with adapter_names, static batches of 16;
transformers' continuous batching on the base alone; vLLM where it is installed; the engine on the base alone; the engine
with adapters; the service over HTTP. All see the same nf4 base, adapters, prompts and numbers of new tokens; only tokens
that a request asked for count.
"""

import argparse
import random
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from transformers import AutoTokenizer

from benchmarks.cases import MIXED_RANKS, Case, make_adapters, make_cases
from benchmarks.measuring import (
    Result,
    apart,
    measure,
    running_engine,
    running_service,
    through_engine,
    through_http,
)
from benchmarks.peers import (
    SkippedError,
    load_reference,
    measure_continuous_batching,
    measure_peft,
    measure_vllm,
)
from benchmarks.random_model import make_phi3_mini
from benchmarks.report import describe_machine, print_agreement, print_table
from core.adapter_version import AdapterVersion
from core.base_model import locate_base_model
from core.prompt import Prompt, PromptRenderer, seal_prompt
from core.settings import Settings
from core.volume import Volume

_ZIPF_PAIRS = 5


def main() -> None:
    args = _parse_args()
    ranks = [MIXED_RANKS[i % len(MIXED_RANKS)] for i in range(args.adapters)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = root / "base" if args.base == "phi3-mini" else locate_base_model(args.base)
        volume = Volume(root / "data")
        volume.create()
        print(apart(describe_machine))
        print(
            f"base: {args.base or 'embedded'}, {args.adapters} adapters of ranks {sorted(set(ranks))}, "
            f"{args.requests} requests, {args.concurrency} at once",
            flush=True,
        )
        cases, versions = apart(prepare, args.base, base, volume, ranks, args.requests)
        results = [] if args.no_peers else _measure_peers(args, base, cases, versions)
        results += apart(_measure_engine, base, cases, versions, args.concurrency)
        if args.zipf:
            apart(_measure_zipf, args.zipf, base, cases, versions[0], args.concurrency)
        if not args.no_http:
            with running_service(base, volume, args.concurrency) as url:
                run = partial(through_http, url, cases, versions, args.concurrency)
                results.append(measure("service over HTTP", cases, run, rounds=2))
    if not args.no_peers:
        print_table(results)
        print_agreement(results[0], next(r for r in results if r.way == "engine"))


def prepare(
    name: str, base: Path, volume: Volume, ranks: list[int], num_requests: int
) -> tuple[list[Case], list[AdapterVersion]]:
    """Requests that ask one adapter after the other, and the adapters, of `ranks`."""
    if name == "phi3-mini":
        make_phi3_mini(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = seal_prompt(Prompt(system=None, template="{text}"), tokenizer)
    cases = make_cases(PromptRenderer(tokenizer, prompt), num_requests, len(ranks))
    return cases, make_adapters(volume, load_reference(base), ranks, prompt, base)


def _measure_peers(
    args: argparse.Namespace, base: Path, cases: list[Case], versions: list[AdapterVersion]
) -> list[Result]:
    results = apart(measure_peft, base, cases, versions, args.sample)
    for peer, peer_args in (
        (measure_continuous_batching, (base, cases, args.concurrency)),
        (measure_vllm, (base, cases, versions, args.concurrency)),
    ):
        try:
            results += apart(peer, *peer_args)
        except SkippedError as error:
            print(f"  skipped: {error}", flush=True)
    return results


def _measure_engine(
    base: Path, cases: list[Case], versions: list[AdapterVersion], concurrency: int
) -> list[Result]:
    with running_engine(base, max_running=concurrency) as engine:
        return [
            measure("engine, base only", cases, lambda: through_engine(engine, cases, None), 2),
            measure("engine", cases, lambda: through_engine(engine, cases, versions), 2),
        ]


def _measure_zipf(
    count: int, base: Path, cases: list[Case], version: AdapterVersion, concurrency: int
) -> None:
    """`count` copies of one adapter, asked for by Zipf's law, against that adapter alone, in turns.

    The first pair, which is not counted, reads the files; in the others host memory has what it has room for.
    """
    copies = [version.model_copy(update={"name": f"zipf{i}"}) for i in range(count)]
    ranks = random.Random(0).choices(
        range(count), weights=[1 / (i + 1) for i in range(count)], k=len(cases)
    )
    spread = [replace(case, adapter=rank) for case, rank in zip(cases, ranks, strict=True)]
    alone = [replace(case, adapter=0) for case in cases]
    with running_engine(base, max_running=concurrency) as engine:
        one, many = [], []
        for pair in range(_ZIPF_PAIRS + 1):
            one.append(
                measure("one adapter", alone, partial(through_engine, engine, alone, copies))
            )
            many.append(
                measure(f"Zipf, {count}", spread, partial(through_engine, engine, spread, copies))
            )
            if not pair:
                cold = replace(engine.stats())
        stats = engine.stats()
    ratio = median(
        m.tokens_per_second / o.tokens_per_second for o, m in zip(one[1:], many[1:], strict=True)
    )
    num_hits = stats.num_adapter_hits - cold.num_adapter_hits
    num_loads = stats.num_adapter_loads - cold.num_adapter_loads
    num_known = stats.num_adapter_host_hits - cold.num_adapter_host_hits
    load_ms = 1e3 * (stats.adapter_load_seconds - cold.adapter_load_seconds) / max(1, num_loads)
    read_ms = 1e3 * cold.adapter_read_seconds / max(1, cold.num_adapter_loads)
    print(
        f"  {count} versions by Zipf's law: {ratio:.0%} of one adapter's speed, median of {_ZIPF_PAIRS} pairs; "
        f"{num_hits / (num_hits + num_loads):.0%} of requests found theirs in the bank, "
        f"{num_known / max(1, num_loads):.0%} of {num_loads} loads in host memory; a load took the engine "
        f"{load_ms:.2f} ms, a read its thread {read_ms:.0f} ms; {stats.num_adapter_host_bytes / 2**20:.0f} MiB kept",
        flush=True,
    )


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=8, help="number of adapters")
    parser.add_argument("--concurrency", type=int, default=128, help="requests at once")
    parser.add_argument("--requests", type=int, default=256, help="requests in all")
    parser.add_argument(
        "--base", default=Settings().base_model, help="folder, hub name, or phi3-mini"
    )
    parser.add_argument("--sample", type=int, default=16, help="requests that (a) serves; 0: all")
    parser.add_argument("--zipf", type=int, default=0, help="versions in the test of many adapters")
    parser.add_argument("--no-peers", action="store_true", help="leave (a), (b) and the others out")
    parser.add_argument("--no-http", action="store_true", help="leave the service over HTTP out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
