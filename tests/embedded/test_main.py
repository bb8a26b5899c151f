"""`python -m embedded`: what it refuses to start with, and what it hands to server and worker."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.__main__ import check_redis, child_env, claim_port
from embedded.errors import StartError
from embedded.redis_server import EmbeddedRedis

ROOT = Path(__file__).parents[2]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def serve(cwd: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m embedded` to its end, from any folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    return subprocess.run(
        [sys.executable, "-m", "embedded"],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_port_in_use(tmp_path: Path, taken_port: int) -> None:
    result = serve(tmp_path, DRAGOMAN_PORT=str(taken_port))
    assert result.returncode == 1
    assert f"port {taken_port} on 127.0.0.1 is in use" in result.stdout
    assert "DRAGOMAN_PORT" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was started, nothing was written


def test_second_service_on_the_same_volume(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data"):
        result = serve(tmp_path, DRAGOMAN_PORT="0")
    assert result.returncode == 1
    assert f"{tmp_path / 'data' / 'redis'} is in use by another Dragoman" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_invalid_setting_is_named(tmp_path: Path) -> None:
    result = serve(tmp_path, DRAGOMAN_PORT="eighty")
    assert result.returncode == 1
    assert "DRAGOMAN_PORT='eighty'" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_unwritable_volume_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = serve(tmp_path, DRAGOMAN_PORT="0", DRAGOMAN_DATA_DIR=str(tmp_path / "file" / "data"))
    assert result.returncode == 1
    assert f"DRAGOMAN_DATA_DIR={tmp_path / 'file' / 'data'}" in result.stdout


def test_absent_redis_is_told_before_anything_starts(tmp_path: Path, taken_port: int) -> None:
    result = serve(
        tmp_path, DRAGOMAN_PORT="0", DRAGOMAN_REDIS_URL=f"unix://:secret@{tmp_path}/no.sock"
    )
    assert result.returncode == 1
    assert "the Redis of DRAGOMAN_REDIS_URL does not answer" in result.stdout
    assert "secret" not in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_given_redis_is_used(redis_url: str) -> None:
    check_redis(redis_url)


def test_malformed_redis_url() -> None:
    with pytest.raises(StartError, match="DRAGOMAN_REDIS_URL"):
        check_redis("localhost:6379")


def test_port_0_is_a_free_port() -> None:
    assert claim_port("127.0.0.1", 0) > 0


def test_unknown_host() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 203\.0\.113\.1"):
        claim_port("203.0.113.1", 8000)


def test_children_do_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    env = child_env(redis_url="unix:///x", data_dir=tmp_path / "data", port=8123)
    program = "from core.settings import Settings; s = Settings(); print(s.data_dir, s.port)"
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(tmp_path / "data"), "8123"]
