"""The embedded Redis, started for real."""

import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from core.queue import create_queue
from core.settings import Settings
from embedded.errors import StartError
from embedded.redis_server import EmbeddedRedis, find_redis_server


def connect(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def test_data_survive_a_restart(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        client.set("job", "queued")
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        assert client.get("job") == "queued"


def test_data_survive_a_kill(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        client.set("job", "running")
        client.config_set("appendfsync", "always")
        client.set("job", "succeeded")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        assert client.get("job") == "succeeded"


def test_nobody_else_can_reach_it(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        assert client.config_get("port") == {"port": "0"}
        socket = Path(server.url.removeprefix("unix://"))
        for path in (socket, socket.parent, server.folder):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_memory_full_is_an_error_and_not_a_lost_job(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    assert server.process is not None
    pid = server.process.pid
    socket_dir = Path(server.url.removeprefix("unix://")).parent
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not socket_dir.exists()
    server.stop()  # may be said twice


def test_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as first, connect(first) as client:
        assert first.process is not None
        with pytest.raises(StartError) as caught:
            EmbeddedRedis(tmp_path).start()
        assert str(first.folder) in str(caught.value)
        assert str(first.process.pid) in str(caught.value)
        assert "DRAGOMAN_DATA_DIR" in str(caught.value)
        assert client.ping()


def test_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / ("path-" * 20)
    with EmbeddedRedis(folder) as server, connect(server) as client:
        client.set("job", "queued")
    assert any(p.is_file() and p.stat().st_size for p in server.folder.rglob("appendonly*"))


def test_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        client.set("job", "queued")
    for path in folder.rglob("*.aof"):
        path.write_bytes(b"not an append-only file\r\n" * 3)
    with pytest.raises(StartError, match="Bad file format") as caught:
        EmbeddedRedis(tmp_path).start()
    assert str(folder / "redis.log") in str(caught.value)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "redis").write_text("a file where the folder should be")
    with pytest.raises(StartError, match=str(tmp_path / "redis")):
        EmbeddedRedis(tmp_path).start()


def is_redis(pid: int) -> bool:
    """Whether process `pid` still runs a redis-server; a zombie runs nothing."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"redis-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import os, sys, signal; from pathlib import Path\n"
        "from embedded.redis_server import EmbeddedRedis\n"
        f"EmbeddedRedis(Path({str(tmp_path)!r})).start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path)})
    pid = int((tmp_path / "redis" / "lock").read_text())
    deadline = time.monotonic() + 60
    while is_redis(pid):  # the folder is free when it has written what was left
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        assert client.ping()


def fake_server(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "redis-server"
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o755)
    return path


def test_redis_on_path_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = fake_server(tmp_path, "7.2.4")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == on_path


@pytest.mark.parametrize("version", ["5.0.7", "6.0.16", "unknown"])
def test_old_redis_on_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    on_path = fake_server(tmp_path, version)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() != on_path


def test_no_redis_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartError, match="DRAGOMAN_REDIS_URL"):
        find_redis_server()


def test_is_the_queue_of_celery(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server) as client:
        settings = Settings(_env_file=None, data_dir=tmp_path, redis_url=server.url)
        queue = create_queue(settings)
        queue.send_task("nothing", args=["job-1"])
        assert client.llen("training") == 1
        queue.close()
