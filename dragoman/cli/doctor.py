"""`dragoman doctor`: what is wrong with this machine as a home for the server, and what to do about it."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dragoman.cli.exit_codes import ExitCode
from dragoman.cli.output import Output
from dragoman.client import Client
from dragoman.errors import DragomanError

if TYPE_CHECKING:
    from core.settings import Settings

_PYTHONS = ((3, 11), (3, 13))
_MAIN_PACKAGES = (
    *("torch", "transformers", "bitsandbytes", "peft", "trl"),
    *("fastapi", "celery", "redis", "pydantic"),
)
_GIB = 1024**3
_LEAST_MEMORY, _GOOD_MEMORY = 1 * _GIB, 3 * _GIB  # server and worker with the embedded base
_LEAST_DISK, _GOOD_DISK = 0.5 * _GIB, 5 * _GIB
# In a process of its own: a torch that does not fit the processor ends the one that imports it.
_PROBE_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda_build": torch.version.cuda, "threads": torch.get_num_threads(),
    "gpus": [{"name": g.name, "memory": g.total_memory, "capability": [g.major, g.minor]} for g in gpus]}))
import bitsandbytes
"""
_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """`advice`: what to do, where something is to be done."""

    name: str
    level: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
) -> None:
    """Tell what is wrong with this machine as a home for the server. Changes nothing; exit code 1 on a failure."""
    out = Output(as_json=as_json)
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            mark, style = _MARKS[finding.level]
            advice = f"\n    {finding.advice}" if finding.advice else ""
            out.say(f"{mark} {finding.name}: {finding.found}{advice}", style=style)
    if as_json:
        out.json([asdict(f) for f in findings])
    if any(f.level == "fail" for f in findings):
        raise typer.Exit(ExitCode.FAILED)


def examine() -> Iterator[Finding]:
    """All findings, in the order in which one would mend them."""
    yield check_python()
    yield from check_packages()
    if importlib.util.find_spec("core") is None:
        yield Finding(
            "server",
            "fail",
            "only the client is installed here",
            "nothing to mend if you only call a server; else install the whole of Dragoman",
        )
        return
    settings = read_settings()
    if isinstance(settings, Finding):
        yield settings
        return
    checks: tuple[tuple[str, Callable[[Settings], Finding]], ...] = (
        ("torch", check_torch),
        ("memory", check_memory),
        ("disk", check_disk),
        ("redis", check_redis),
        ("port", check_port),
        ("base model", check_base_model),
    )
    for name, check in checks:
        try:
            yield check(settings)
        except ImportError as error:
            yield Finding(name, "fail", str(error), "pip install dragoman mends the installation")


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]:
        return Finding("python", "ok", f"{version}, {sys.executable}")
    wanted = f"{'.'.join(map(str, _PYTHONS[0]))} to {'.'.join(map(str, _PYTHONS[1]))}"
    return Finding("python", "fail", version, f"use Python {wanted}")


def check_packages() -> Iterator[Finding]:
    """The main packages, against what this installation asks for."""
    wanted = _requirements()
    shown = []
    for name in _MAIN_PACKAGES:
        specifier = wanted.get(name)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if wanted:  # the client alone needs few of them
                yield Finding(
                    name, "fail", "not installed", f'pip install "{name}{specifier or ""}"'
                )
            continue
        shown.append(f"{name} {version}")
        if specifier is not None and not specifier.contains(version, prereleases=True):
            advice = f'pip install "{name}{specifier}"'
            yield Finding(name, "warn", f"{version} is not one that was tested", advice)
    yield Finding("packages", "ok", ", ".join(shown))


def _requirements() -> dict[str, Any]:
    """Package -> its version specifier; empty where the server is not installed."""
    try:
        lines = importlib.metadata.requires("dragoman") or []
        from packaging.requirements import Requirement
    except ImportError:  # includes PackageNotFoundError
        return {}
    parsed = [Requirement(line) for line in lines]
    return {r.name: r.specifier for r in parsed if r.marker is None or r.marker.evaluate()}


def read_settings() -> "Settings | Finding":
    from pydantic import ValidationError

    from core.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        faults = [
            f"DRAGOMAN_{str(e['loc'][0]).upper()}={e['input']!r}: {e['msg']}"
            for e in error.errors()
        ]
        return Finding("settings", "fail", "; ".join(faults), "mend the environment or .env")


def check_torch(settings: "Settings") -> Finding:
    """torch and bitsandbytes load, and see the device that is asked for."""
    try:
        probe = subprocess.run(  # noqa: S603
            [sys.executable, "-c", _PROBE_TORCH],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("torch", "fail", "does not load within 3 minutes", "look at the disk")
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        return Finding("torch", "fail", last, "install torch and bitsandbytes again")
    found = json.loads(probe.stdout.splitlines()[0])
    gpus = [f"{g['name']}, {g['memory'] / _GIB:.0f} GiB" for g in found["gpus"]]
    if gpus:
        return Finding("device", "ok", f"{'; '.join(gpus)} (torch {found['version']})")
    if settings.device == "cuda":
        advice = "install a CUDA build of torch and the driver, or unset DRAGOMAN_DEVICE"
        return Finding("device", "fail", "DRAGOMAN_DEVICE=cuda, but torch sees no GPU", advice)
    if shutil.which("nvidia-smi"):
        build = f"built for CUDA {found['cuda_build']}" if found["cuda_build"] else "a CPU build"
        advice = "install a CUDA build of torch that fits the driver; until then the CPU is used"
        return Finding("device", "warn", f"there is a GPU, but torch ({build}) sees none", advice)
    return Finding("device", "ok", f"CPU, {found['threads']} threads (torch {found['version']})")


def check_memory(settings: "Settings") -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    found = f"{free / _GIB:.1f} GiB free"
    if free < _LEAST_MEMORY:
        return Finding("memory", "fail", found, "free at least 1 GiB")
    if free < _GOOD_MEMORY:
        return Finding("memory", "warn", found, "enough to translate; training wants 3 GiB")
    return Finding("memory", "ok", found)


def check_disk(settings: "Settings") -> Finding:
    """The volume can be written, and has room. What is not there yet is not made."""
    root = settings.data_dir.expanduser().resolve()
    place = next(p for p in (root, *root.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        advice = "make it writable, or set DRAGOMAN_DATA_DIR to another folder"
        return Finding("volume", "fail", f"{place}: {error.strerror}", advice)
    found = f"{root} can be written, {free / _GIB:.1f} GiB free"
    if free < _LEAST_DISK:
        return Finding("volume", "fail", found, "free some room")
    if free < _GOOD_DISK:
        return Finding("volume", "warn", found, "checkpoints and models of several GB need more")
    return Finding("volume", "ok", found)


def check_redis(settings: "Settings") -> Finding:
    from embedded import __main__ as embedded
    from embedded.errors import StartError
    from embedded.redis_server import find_redis_server

    try:
        if settings.redis_url:
            embedded.check_redis(settings.redis_url)
            return Finding("redis", "ok", "the one of DRAGOMAN_REDIS_URL answers")
        return Finding("redis", "ok", f"embedded, {find_redis_server()}")
    except StartError as error:
        advice = "start it, or unset DRAGOMAN_REDIS_URL for the embedded one"
        return Finding("redis", "fail", str(error), advice if settings.redis_url else "")


def check_port(settings: "Settings") -> Finding:
    """The port is free, or a Dragoman listens on it already."""
    from embedded import __main__ as embedded
    from embedded.errors import StartError

    try:
        embedded.claim_port(settings.host, settings.port)
        return Finding("port", "ok", f"{settings.port} on {settings.host} is free")
    except StartError as error:
        refusal = str(error)
    url = embedded.local_url(settings.host, settings.port)
    try:
        with Client(url, max_retries=0, timeout_s=5) as client:
            state = client.ready()
    except DragomanError:
        return Finding("port", "fail", refusal)
    if state.ok:
        return Finding("port", "ok", f"a Dragoman answers at {url}")
    return Finding("port", "warn", f"a Dragoman at {url} is not ready: {state.describe()}")


def check_base_model(settings: "Settings") -> Finding:
    from core.base_model import EMBEDDED

    name = settings.base_model
    folder = Path(name).expanduser() if name else EMBEDDED
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        return Finding("base model", "ok", f"{name or 'embedded'}, {size / 1e6:.0f} MB")
    if not name:
        return Finding(
            "base model", "fail", f"{EMBEDDED} is missing", "install from a whole checkout"
        )
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        advice = "DRAGOMAN_BASE_MODEL takes a folder with a config.json, or a hub name"
        return Finding("base model", "fail", f"{name!r} is neither", advice)
    if isinstance(cached, (str, os.PathLike)):
        return Finding("base model", "ok", f"{name}, in the hub's cache")
    return Finding("base model", "warn", f"{name} is not here yet", "the first start downloads it")
