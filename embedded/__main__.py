"""`python -m embedded`, which is `make serve`: Redis, worker and server on this machine, stopped together."""

import errno
import http.client
import os
import shlex
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import redis
from pydantic import ValidationError

from core.queue import TRAINING_QUEUE
from core.settings import Settings
from core.volume import Volume
from embedded.console import Console
from embedded.errors import StartError
from embedded.process_runner import ProcessRunner, StopSignals
from embedded.redis_server import EmbeddedRedis

_ROOT = Path(__file__).resolve().parent.parent
_KILL_MARGIN_S = 4.0  # for what follows the grace that server and worker give to running work
_FIRST_REQUEST = '{"q":"The Force is strong in you!","adapter":"yoda"}'


def main() -> int:
    """Returns the exit code: 0 after Ctrl-C or SIGTERM, else that of the process that ended."""
    console = Console()
    try:
        return _serve(_read_settings(), console)
    except StartError as error:
        console.stage(f"cannot start: {error}")
        return 1


def _serve(settings: Settings, console: Console) -> int:
    port = claim_port(settings.host, settings.port)
    data_dir = _create_volume(settings.data_dir)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        if settings.redis_url:
            redis_url, server = settings.redis_url, None
            check_redis(redis_url)
            console.stage("redis: using the one of DRAGOMAN_REDIS_URL")
        else:
            server = stack.enter_context(EmbeddedRedis(data_dir))
            redis_url = server.url
            console.stage(f"redis ready, data in {server.folder}")
        # Entered last, so left first: Redis stops when nobody uses it any more.
        runner = stack.enter_context(
            ProcessRunner(console, signals, grace_s=settings.stop_grace_s + _KILL_MARGIN_S)
        )
        if server is not None and server.process is not None:
            runner.watch("redis", server.process)
        env = child_env(redis_url=redis_url, data_dir=data_dir, port=port)
        runner.start("server", [sys.executable, "-m", "app.main"], env)
        runner.start("worker", _worker_command(settings), env)
        console.stage("server and worker started")
        url = local_url(settings.host, port)
        threading.Thread(target=_announce_ready, args=(console, url), daemon=True).start()
        return runner.wait()


def _read_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        faults = (
            f"DRAGOMAN_{str(e['loc'][0]).upper()}={e['input']!r}: {e['msg']}"
            for e in error.errors()
        )
        raise StartError("; ".join(faults)) from error


def claim_port(host: str, port: int) -> int:
    """The port to listen on: `port`, or a free one if that is 0. Raises StartError if it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use by another program: "
                "stop that one, or set DRAGOMAN_PORT to another port (0: any free one)"
            ) from error
        raise StartError(f"cannot listen on {host}, port {port}: {error}") from error


def check_redis(url: str) -> None:
    """Raises StartError if no Redis answers there."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
            client.ping()
    except (redis.RedisError, ValueError, OSError) as error:
        # The URL is not repeated: it may hold a password.
        raise StartError(f"the Redis of DRAGOMAN_REDIS_URL does not answer: {error}") from error


def child_env(*, redis_url: str, data_dir: Path, port: int) -> dict[str, str]:
    """What server and worker are started with, whatever the working directory is."""
    path = os.environ.get("PYTHONPATH")
    return os.environ | {
        "DRAGOMAN_REDIS_URL": redis_url,
        "DRAGOMAN_DATA_DIR": str(data_dir),
        "DRAGOMAN_PORT": str(port),
        # Our own packages, not an `app` that happens to lie in the working directory.
        "PYTHONPATH": f"{_ROOT}{os.pathsep}{path}" if path else str(_ROOT),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _create_volume(data_dir: Path) -> Path:
    volume = Volume(data_dir)
    try:
        volume.create()
        volume.check_writable()
    except OSError as error:
        raise StartError(f"cannot write in DRAGOMAN_DATA_DIR={volume.root}: {error}") from error
    return volume.root


def _worker_command(settings: Settings) -> list[str]:
    return [
        sys.executable,
        *("-m", "celery", "--quiet", "--app", "worker.main:queue", "worker"),
        *("--queues", TRAINING_QUEUE, "--concurrency", "1", "--loglevel", settings.log_level),
        # These are for many workers that talk to each other; without them it starts sooner.
        *("--without-gossip", "--without-mingle"),
    ]


def local_url(host: str, port: int) -> str:
    """By which this machine reaches a server that listens on `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _announce_ready(console: Console, url: str) -> None:
    """Says where the service is, and what to try first, once GET /ready answers 200."""
    while not _is_ready(url):
        time.sleep(0.2)
    console.stage(f"ready: {url} (API: {url}/docs); Ctrl-C stops it. Try:")
    request = ["-H", "content-type: application/json", "-d", _FIRST_REQUEST]
    console.write("dragoman", f"curl -s {url}/translate {shlex.join(request)}")


def _is_ready(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=2)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
