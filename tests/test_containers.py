"""The container files, as far as they can be judged without a container engine."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.queue import TRAINING_QUEUE
from core.settings import Settings

ROOT = Path(__file__).parents[1]
SERVERS = {"gpu": "server", "cpu": "server-cpu"}
WORKERS = {"gpu": "worker", "cpu": "worker-cpu"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_dockerfile_has_no_lint() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: it comes with the dev extra where it has a wheel")
    result = subprocess.run(
        [hadolint, "--no-color", "Dockerfile.gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_image_is_not_root_and_tells_its_health() -> None:
    lines = (ROOT / "Dockerfile.gpu").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1].split(":")[0] not in ("0", "root")
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


def test_image_holds_what_runs_and_nothing_private() -> None:
    kept = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert {"app", "core", "embedded", "models", "worker", "pyproject.toml"} <= set(kept)
    assert not {"data", ".env", ".git"} & set(kept)


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_each_profile_is_whole(services: dict[str, Any], profile: str) -> None:
    of_profile = {name for name, service in services.items() if profile in service["profiles"]}
    assert of_profile == {"redis", SERVERS[profile], WORKERS[profile]}


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_one_image_two_commands_one_volume(services: dict[str, Any], profile: str) -> None:
    server, worker = services[SERVERS[profile]], services[WORKERS[profile]]
    assert server["image"] == worker["image"] == f"dragoman:{profile}"
    assert server["volumes"] == worker["volumes"] == ["data:/data"]
    assert "command" not in server  # the image's own
    assert worker["command"][0] == "celery"
    assert f"--queues={TRAINING_QUEUE}" in worker["command"]
    assert "--app=worker.main:queue" in worker["command"]


def test_only_the_gpu_profile_asks_for_gpus(services: dict[str, Any]) -> None:
    for name in (SERVERS["gpu"], WORKERS["gpu"]):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
    for name in (SERVERS["cpu"], WORKERS["cpu"]):
        assert "deploy" not in services[name]
        assert services[name]["build"]["args"]["TORCH_BACKEND"] == "cpu"


def test_nothing_starts_before_redis_is_well(services: dict[str, Any]) -> None:
    assert services["redis"]["healthcheck"]["test"]
    for name in (*SERVERS.values(), *WORKERS.values()):
        assert services[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    for name in WORKERS.values():  # the servers have the image's health check
        assert "celery inspect ping" in services[name]["healthcheck"]["test"][1]


def test_no_service_runs_as_root(services: dict[str, Any]) -> None:
    assert services["redis"]["user"] == "redis"
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service.get("user") != "root"


def test_no_password_no_start(services: dict[str, Any]) -> None:
    required = "${DRAGOMAN_REDIS_PASSWORD:?"
    assert services["redis"]["environment"]["REDISCLI_AUTH"].startswith(required)
    for name in (*SERVERS.values(), *WORKERS.values()):
        assert required in services[name]["environment"]["DRAGOMAN_REDIS_URL"]
    assert '--requirepass "$$REDISCLI_AUTH"' in services["redis"]["command"][-1]


def test_redis_loses_nothing(services: dict[str, Any]) -> None:
    command = services["redis"]["command"][-1]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert services["redis"]["volumes"] == ["redis:/data"]


def test_only_this_machine_can_reach_it(services: dict[str, Any]) -> None:
    assert "ports" not in services["redis"]
    for name in SERVERS.values():
        assert services[name]["ports"] == ["${DRAGOMAN_PUBLISH:-127.0.0.1:8000}:8000"]


def test_there_is_time_to_stop(services: dict[str, Any]) -> None:
    grace_s = Settings(_env_file=None).stop_grace_s
    for name in (*SERVERS.values(), *WORKERS.values()):
        assert float(services[name]["stop_grace_period"].removesuffix("s")) > grace_s
