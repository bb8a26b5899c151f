"""Servers that misbehave: one that cuts connections, one that answers what it was told to."""

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_MAX_HELD_S = 60.0  # then it is the test's fault, which fails instead of hanging


class CuttingProxy:
    """Passes TCP on to `target`; each connection breaks after `cut_after` bytes of its answer, while cuts are left."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.cut_after = 0
        self.cuts = 0
        self.num_cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
            threading.Thread(target=self._answer, args=(far, near), daemon=True).start()

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while data := near.recv(65536):
                far.sendall(data)
        except OSError:
            pass
        far.close()

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        passed = 0
        try:
            while data := far.recv(256):
                near.sendall(data)
                passed += len(data)
                if self.cuts and passed >= self.cut_after:
                    self.cuts -= 1
                    self.num_cut += 1
                    near.shutdown(socket.SHUT_RDWR)
                    break
        except OSError:
            pass
        near.close()
        far.close()


@dataclass
class Reply:
    """`breaks`: the connection ends without an answer. `after`: it comes once this is so, or at the test's end never."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] | None = None
    breaks: bool = False
    after: Callable[[], bool] | None = None


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class ScriptedServer:
    """Answers with `replies` in turn, then with the last for ever; or with what `answer` makes of the request."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.replies: list[Reply] = []
        self.answer: Callable[[Seen], Reply] = lambda seen: (
            self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        )
        self.seen: list[Seen] = []
        self.answered: list[Seen] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer._answer(self, Seen(self.command, self.path, dict(self.headers), body))

            do_GET = do_POST = do_PUT = do_DELETE = _handle

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

        self._server = Server((host, 0), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def _answer(self, handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)
            reply = self.answer(seen)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        deadline = time.monotonic() + _MAX_HELD_S
        while reply.after and not reply.after() and time.monotonic() < deadline:
            if self._ended.wait(0.01):
                handler.close_connection = True
                return
        with self._lock:
            self._now -= 1
            self.answered.append(seen)
        if reply.breaks:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        is_text = isinstance(reply.body, str)
        content = (reply.body if is_text else json.dumps(reply.body)).encode()
        handler.send_response(reply.status)
        headers = {"content-type": "text/html" if is_text else "application/json"}
        for name, value in (headers | (reply.headers or {})).items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


def never() -> bool:
    return False


def problem(status: int, code: str, detail: str = "no", **extra: Any) -> Reply:
    return Reply(status, {"status": status, "code": code, "detail": detail, **extra})


def translated(text: str) -> Reply:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    body = {"translatedText": text, "adapter": "a@1", "usage": usage, "finish_reason": "stop"}
    return Reply(body=body)
