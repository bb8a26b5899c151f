"""Serving many adapters at once: this service against what PEFT offers, on one base, in one run.

    python -m benchmarks.serve                          the embedded base, 8 adapters, 128 at once
    python -m benchmarks.serve --adapters 16 --concurrency 64
    python -m benchmarks.serve --base phi3-mini         3.8 B random weights; wants a GPU
    python -m benchmarks.serve --zipf 1000              adapters by the thousand, against one

(a) set_adapter + generate, one request after the other; (b) generate with adapter_names, static batches of 16; the
engine on the base alone; the engine with adapters; the service over HTTP. All see the same nf4 base, adapters, prompts
and numbers of new tokens; only tokens that a request asked for count.
"""

import argparse
import asyncio
import multiprocessing
import os
import platform
import queue
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import httpx
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from app.engine.adapters import stay_single_threaded
from app.engine.engine import Engine, EngineLimits
from app.engine.loading import load_base_model
from app.engine.sequence import SamplingParams, Sequence, Update
from benchmarks.random_model import make_phi3_mini
from core.adapters import SEAL_FILE, AdapterRegistry, AdapterVersion, Seal, content_sha256
from core.base_model import EMBEDDED, NF4_CONFIG, fingerprint, locate_base_model
from core.prompt import Prompt, PromptRenderer, SealedPrompt, seal_prompt
from core.settings import Settings
from core.volume import Volume
from embedded.redis_server import EmbeddedRedis

RANKS = (8, 16, 4, 8, 32, 8, 2, 16)
PEFT_BATCH = 16
WORDS = [
    "the",
    "a",
    "old",
    "young",
    "river",
    "mountain",
    "soldier",
    "winter",
    "letter",
    "garden",
    "never",
    "often",
    "slowly",
    "keeps",
    "finds",
    "under",
    "over",
    "bread",
    "lamp",
    "voice",
    "road",
    "stone",
    "morning",
    "answer",
    "window",
    "carries",
    "remembers",
    "and",
    "but",
    "with",
]


@dataclass(frozen=True)
class Case:
    """One request: a text for adapter number `adapter`, and how many tokens it wants."""

    text: str
    prompt_ids: list[int]
    adapter: int
    num_new: int


@dataclass(frozen=True)
class Result:
    way: str
    tokens_per_second: float
    outputs: list[list[int]]


def main() -> None:
    args = _parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = root / "base" if args.base == "phi3-mini" else locate_base_model(args.base)
        volume = Volume(root / "data")
        volume.create()
        cases, versions = _apart(_prepare, args, root, base, volume)
        results = _apart(_measure_peers, base, cases, versions, args.sample)
        results += _apart(_measure_engine, base, cases, versions, args.concurrency)
        if args.zipf:
            _apart(_measure_zipf, args.zipf, base, cases, versions[0], args.concurrency)
        if not args.no_http:
            with _service(args, base, volume) as url:
                run = partial(_through_http, url, cases, versions, args.concurrency)
                results.append(_measure("service over HTTP", cases, run, rounds=2))
    _print_table(results)
    _print_agreement(results[0], next(r for r in results if r.way == "engine"))


def _apart(function: Callable[..., Any], *args: Any) -> Any:
    """Runs a part in a process of its own, so that none inherits another's threads, caches or memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def _prepare(
    args: argparse.Namespace, root: Path, base: Path, volume: Volume
) -> tuple[list[Case], list[AdapterVersion]]:
    if args.base == "phi3-mini":
        make_phi3_mini(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = seal_prompt(Prompt(system=None, template="{text}"), tokenizer)
    cases = _make_cases(PromptRenderer(tokenizer, prompt), args.requests, args.adapters)
    model = _load_reference(base)
    _print_header(args, model)
    return cases, _make_adapters(volume, model, args.adapters, prompt, root, base)


def _measure_engine(
    base: Path, cases: list[Case], versions: list[AdapterVersion], concurrency: int
) -> list[Result]:
    with _engine(base, concurrency) as engine:
        return [
            _measure("engine, base only", cases, partial(_through_engine, engine, cases, None), 2),
            _measure("engine", cases, partial(_through_engine, engine, cases, versions), 2),
        ]


def _measure_zipf(
    count: int, base: Path, cases: list[Case], version: AdapterVersion, concurrency: int
) -> None:
    """`count` copies of one adapter, asked for by Zipf's law, against that adapter alone."""
    copies = [version.model_copy(update={"name": f"zipf{i}"}) for i in range(count)]
    ranks = random.Random(0).choices(
        range(count), weights=[1 / (i + 1) for i in range(count)], k=len(cases)
    )
    spread = [replace(case, adapter=rank) for case, rank in zip(cases, ranks, strict=True)]
    alone = [replace(case, adapter=0) for case in cases]
    with _engine(base, concurrency) as engine:
        one = _measure("one adapter", alone, partial(_through_engine, engine, alone, copies), 2)
        many = _measure(
            f"Zipf, {count}", spread, partial(_through_engine, engine, spread, copies), 2
        )
        stats = engine.stats()
    num_asked = stats.num_adapter_hits + stats.num_adapter_loads
    print(
        f"  {count} versions by Zipf's law: {many.tokens_per_second / one.tokens_per_second:.0%} of one "
        f"adapter's speed; {stats.num_adapter_hits / num_asked:.0%} of requests found theirs in the bank, "
        f"{stats.num_adapter_host_hits / max(1, stats.num_adapter_loads):.0%} of loads in host memory; "
        f"a load took the engine {1e3 * stats.adapter_load_seconds / max(1, stats.num_adapter_loads):.1f} ms; "
        f"{stats.num_adapter_host_bytes / 2**20:.0f} MiB kept",
        flush=True,
    )


def _measure_peers(
    base: Path, cases: list[Case], versions: list[AdapterVersion], sample: int
) -> list[Result]:
    first, *others = versions
    model = PeftModel.from_pretrained(_load_reference(base), first.path, adapter_name=first.name)
    for version in others:
        model.load_adapter(version.path, adapter_name=version.name)
    model.eval()
    some = cases[: sample or len(cases)]
    one_by_one = partial(_one_by_one, model, some, versions)
    batches = partial(_adapter_names, model, cases, versions)
    return [
        _measure("(a) set_adapter + generate, one by one", some, one_by_one),
        _measure(f"(b) PEFT adapter_names, batches of {PEFT_BATCH}", cases, batches),
    ]


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
    parser.add_argument("--no-http", action="store_true", help="leave the service over HTTP out")
    return parser.parse_args()


def _make_cases(renderer: PromptRenderer, num_requests: int, num_adapters: int) -> list[Case]:
    rng = random.Random(0)
    cases = []
    for i in range(num_requests):
        text = " ".join(rng.choices(WORDS, k=rng.randrange(6, 22)))
        cases.append(Case(text, renderer.prompt_ids(text), i % num_adapters, rng.randrange(8, 41)))
    return cases


def _load_reference(base: Path) -> Any:
    """The base as the libraries' own examples load it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options: dict[str, Any] = {}
    if base != EMBEDDED:
        options["quantization_config"] = BitsAndBytesConfig(
            **NF4_CONFIG, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, device_map={"": device}, **options
    )
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = dtype
    return model.eval()


def _make_adapters(
    volume: Volume,
    base: Any,
    count: int,
    prompt: SealedPrompt,
    root: Path,
    folder: Path,
) -> list[AdapterVersion]:
    """Random adapters of mixed ranks, published as a job would. An id outside the text stops them: none ends early."""
    registry = AdapterRegistry(volume)
    versions = []
    for i in range(count):
        torch.manual_seed(i)
        config = LoraConfig(
            r=RANKS[i % len(RANKS)], target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        staged = root / f"adapter-{i}"
        model.save_pretrained(staged)
        model.unload()
        seal = Seal(
            base_fingerprint=fingerprint(folder),
            base_model=str(folder),
            prompt=prompt,
            stop_token_ids=[base.config.vocab_size - 1],
            source="en",
            target="en",
            dataset_id="none",
            dataset_sha256="",
            dataset_rows=0,
            job_id="none",
            created_at=datetime.now(UTC),
            config={},
            content_sha256=content_sha256(staged),
        )
        (staged / SEAL_FILE).write_text(seal.model_dump_json())
        version = registry.publish(f"bench{i}", staged)
        registry.promote(version.name, version.version)
        versions.append(version)
    return versions


def _measure(
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


@torch.inference_mode()
def _one_by_one(model: Any, cases: list[Case], versions: list[AdapterVersion]) -> list[list[int]]:
    outputs = []
    for case in cases:
        model.set_adapter(versions[case.adapter].name)
        ids = torch.tensor([case.prompt_ids], device=model.device)
        output = _generate(model, ids, torch.ones_like(ids), case.num_new)
        outputs.append(output[0, ids.shape[1] :].tolist())
    return outputs


@torch.inference_mode()
def _adapter_names(
    model: Any, cases: list[Case], versions: list[AdapterVersion]
) -> list[list[int]]:
    outputs = []
    for start in range(0, len(cases), PEFT_BATCH):
        batch = cases[start : start + PEFT_BATCH]
        longest = max(len(c.prompt_ids) for c in batch)
        ids = [[0] * (longest - len(c.prompt_ids)) + c.prompt_ids for c in batch]
        mask = [[0] * (longest - len(c.prompt_ids)) + [1] * len(c.prompt_ids) for c in batch]
        output = _generate(
            model,
            torch.tensor(ids, device=model.device),
            torch.tensor(mask, device=model.device),
            max(c.num_new for c in batch),
            adapter_names=[versions[c.adapter].name for c in batch],
        )
        outputs += [
            row[: c.num_new].tolist() for c, row in zip(batch, output[:, longest:], strict=True)
        ]
    return outputs


def _generate(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, num_new: int, **options: Any
) -> torch.Tensor:
    output: torch.Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=num_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return output


@contextmanager
def _engine(base: Path, concurrency: int) -> Iterator[Engine]:
    settings = Settings(max_running=concurrency)
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


def _through_engine(
    engine: Engine, cases: list[Case], versions: list[AdapterVersion] | None
) -> list[list[int]]:
    done: queue.Queue[tuple[int, Update]] = queue.Queue()
    sequences = []
    for i, case in enumerate(cases):

        def sink(update: Update, i: int = i) -> None:
            done.put((i, update))

        params = SamplingParams(case.num_new, frozenset())
        version = versions[case.adapter] if versions else None
        sequences.append(Sequence(case.prompt_ids, params, version, sink))
    engine.submit(*sequences)
    outputs: list[list[int]] = [[] for _ in cases]
    for _ in cases:
        i, update = done.get()
        if update.error:
            raise update.error
        outputs[i] = update.token_ids
    return outputs


@contextmanager
def _service(args: argparse.Namespace, base: Path, volume: Volume) -> Iterator[str]:
    """The real server in a process of its own."""
    port = 18_000 + os.getpid() % 1000
    with EmbeddedRedis(volume.root) as redis:
        environment = os.environ | {
            "DRAGOMAN_REDIS_URL": redis.url,
            "DRAGOMAN_DATA_DIR": str(volume.root),
            "DRAGOMAN_BASE_MODEL": "" if base == EMBEDDED else str(base),
            "DRAGOMAN_PORT": str(port),
            "DRAGOMAN_MAX_RUNNING": str(args.concurrency),
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


def _through_http(
    url: str, cases: list[Case], versions: list[AdapterVersion], concurrency: int
) -> list[list[int]]:
    async def ask(client: httpx.AsyncClient, case: Case) -> None:
        body = {
            "q": case.text,
            "adapter": versions[case.adapter].ref,
            "max_new_tokens": case.num_new,
        }
        response = await client.post(f"{url}/translate", json=body)
        response.raise_for_status()
        made = response.json()["usage"]["completion_tokens"]
        if made != case.num_new:
            raise RuntimeError(f"asked for {case.num_new} tokens, got {made}")

    async def ask_all() -> None:
        limits = httpx.Limits(max_connections=concurrency)
        async with httpx.AsyncClient(timeout=600, limits=limits) as client:
            await asyncio.gather(*(ask(client, case) for case in cases))

    asyncio.run(ask_all())
    return []


def _print_header(args: argparse.Namespace, model: Any) -> None:
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {os.cpu_count()} cores"
    )
    print(
        f"{device}; Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, peft {peft.__version__}, bitsandbytes {bitsandbytes.__version__}\n"
        f"base: {args.base or 'embedded'} ({sum(p.numel() for p in model.parameters()) / 1e6:,.0f} M stored values), "
        f"{args.adapters} adapters of ranks {sorted({RANKS[i % len(RANKS)] for i in range(args.adapters)})}, "
        f"{args.requests} requests, {args.concurrency} at once",
        flush=True,
    )


def _print_table(results: list[Result]) -> None:
    slowest, batched = results[0].tokens_per_second, results[1].tokens_per_second
    print("\n| way | tokens/s | against (a) | against (b) |\n|---|---|---|---|")
    for result in results:
        speed = result.tokens_per_second
        print(f"| {result.way} | {speed:,.0f} | {speed / slowest:.1f}x | {speed / batched:.1f}x |")


def _print_agreement(reference: Result, ours: Result) -> None:
    """Equal unless rounding decides: bitsandbytes' kernels differ by batch shape on some processors."""
    equal = sum(a == b for a, b in zip(reference.outputs, ours.outputs, strict=False))
    print(f"\nanswers equal to (a), token for token: {equal} of {len(reference.outputs)}")


if __name__ == "__main__":
    main()
