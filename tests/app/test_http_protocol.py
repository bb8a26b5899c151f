"""Requests as bytes, to a server in a thread: what httptools alone would let through, or keep for ever."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvicorn
from fastapi import FastAPI, Request

from app.http_protocol import HttpProtocol

app = FastAPI()
_KIB = 1024


@app.post("/")
async def answer(request: Request) -> dict[str, int]:
    return {"num_bytes": len(await request.body())}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(app, http=HttpProtocol, port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        yield connection


def send_in_pieces(connection: socket.socket, head: bytes, piece: bytes, count: int) -> bytes:
    """What comes back before the server has closed the connection; "" where it went by a reset."""
    with suppress(ConnectionError):
        connection.sendall(head)
        for _ in range(count):
            connection.sendall(piece)
    received = b""
    with suppress(ConnectionError):
        while data := connection.recv(64 * _KIB):
            received += data
    return received


def read_answer(connection: socket.socket) -> bytes:
    received = b""
    while b"}" not in received:
        data = connection.recv(64 * _KIB)
        assert data, received
        received += data
    return received


@pytest.mark.parametrize(
    "head",
    [
        b"POST /",
        b"POST / HTTP/1.1\r\nX-Long: ",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;extension=",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Trailer: ",
    ],
    ids=["path", "header", "chunk", "trailer"],
)
def test_what_does_not_end_is_cut_off(connection: socket.socket, head: bytes) -> None:
    """Without that, 64 MiB would be kept, and the connection with them."""
    received = send_in_pieces(connection, head, b"a" * 64 * _KIB, 1024)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_headers_without_end_are_cut_off(connection: socket.socket) -> None:
    received = send_in_pieces(connection, b"POST / HTTP/1.1\r\n", b"X-A: b\r\n" * 8 * _KIB, 1024)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        "POST /?q=é HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode(),
        "POST /é HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode("latin-1"),
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
        b"hello\r\n\r\n",
    ],
    ids=["query", "path", "two-framings", "two-lengths", "header-name", "no-http"],
)
def test_malformed(connection: socket.socket, request_bytes: bytes) -> None:
    assert send_in_pieces(connection, request_bytes, b"", 0).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("chunk", [1, 7, 100_000])
def test_many_chunks_are_no_endless_head(connection: socket.socket, chunk: int) -> None:
    body = b"a" * 300_000
    chunks = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head + framed + b"0\r\n\r\n")
    assert b'{"num_bytes":300000}' in read_answer(connection)


@pytest.mark.parametrize("split", [0, 20, -2])
def test_one_request_after_another(connection: socket.socket, split: int) -> None:
    """As Java's client asks at first: for HTTP/2, which is not spoken here, with a body all the same."""
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAA\r\n"
    )
    for extra in (b"", upgrade, b"", upgrade, b"Expect: 100-continue\r\n"):
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n" + extra + b"\r\nabc"
        connection.sendall(request[:split])
        time.sleep(0.02)
        connection.sendall(request[split:])
        answer = read_answer(connection)
        assert b"HTTP/1.1 200 OK\r\n" in answer
        assert b'{"num_bytes":3}' in answer


def test_an_upgrade_before_the_answer_to_another_request(connection: socket.socket) -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    received = send_in_pieces(
        connection, request + b"\r\nabc" + request + upgrade + b"\r\nabc", b"", 0
    )
    assert received.startswith(b"HTTP/1.1 400 ")


def test_a_websocket_is_refused(connection: socket.socket) -> None:
    connection.sendall(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert connection.recv(64 * _KIB).startswith(b"HTTP/1.1 40")
