"""Real parts for every test: a redis-server of our own, a volume in a temporary folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from core.settings import Settings
from core.volume import Volume
from embedded.redis_server import EmbeddedRedis

_MAX_NAME = 60  # characters of a parameter in a test's name


@pytest.hookimpl(trylast=True)  # tests/browser marks its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several real processes on a busy machine: such a test gets a second try, and the summary names it."""
    for item in items:
        if item.get_closest_marker("e2e") or item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_make_parametrize_id(val: object) -> str | None:
    """What a test is given may be megabytes, and archives hold the time at which they were made; a test's name is short,
    and the same in every process."""
    if isinstance(val, bytes) and len(val) > _MAX_NAME:
        return "bytes"
    is_long = isinstance(val, str) and len(val) > _MAX_NAME
    return f"{val[:_MAX_NAME]!r}..." if is_long else None  # None: as pytest names it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why a second try was needed: that is to be explained, too."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> Iterator[None]:
    """What the person running the tests has configured must change no result."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("DRAGOMAN_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def _redis_server(
    _no_settings_from_outside: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis-data")) as server:
        yield server


@pytest.fixture
def redis_url(_redis_server: EmbeddedRedis) -> str:
    """A real, empty Redis. One server per session; flushed before each test."""
    with redis.Redis.from_url(_redis_server.url) as client:
        client.flushall()
    return _redis_server.url


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """An empty volume with its folders."""
    volume = Volume(tmp_path / "data")
    volume.create()
    return volume


@pytest.fixture
def settings(volume: Volume, redis_url: str) -> Settings:
    """Defaults, but for `volume` and `redis_url`."""
    return Settings(_env_file=None, data_dir=volume.root, redis_url=redis_url)
