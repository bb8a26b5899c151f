"""Requests over HTTP from a client that leaves the processor to the server: bytes made beforehand, over plain connections.

As web load generators do it: 0.2 ms of the processor a request, where httpx takes 2.1.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Request(NamedTuple):
    """POST /translate as bytes, and how many tokens its answer must have."""

    data: bytes
    num_new: int


def make_request(url: str, text: str, adapter: str, num_new: int) -> Request:
    """`url`: of the server, such as http://127.0.0.1:8000."""
    body = json.dumps({"q": text, "adapter": adapter, "max_new_tokens": num_new}).encode()
    head = (
        f"POST /translate HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Request(head.encode() + body, num_new)


def ask_all(url: str, requests: list[Request], concurrency: int) -> float:
    """Asks them from as many connections as there are users, each with a request at a time.

    Returns the processor time that this took here, in seconds. Raises RuntimeError for an answer that is none, or has
    other than the tokens that were asked for.
    """
    started = time.process_time()
    asyncio.run(_ask_all(url, iter(requests), min(concurrency, len(requests))))
    return time.process_time() - started


async def _ask_all(url: str, left: Iterator[Request], num_users: int) -> None:
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    users = [_User(left) for _ in range(num_users)]
    for user in users:
        await loop.create_connection(lambda user=user: user, address.hostname, address.port)
    await asyncio.gather(*(user.done for user in users))


class _User(asyncio.Protocol):
    """One connection, which asks again as soon as it is answered."""

    def __init__(self, left: Iterator[Request]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = left
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask_next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None or len(body) < int(length[1]):
            return
        self._received = b""
        if not head.startswith(b"HTTP/1.1 200 "):
            self._fail(f"{head.splitlines()[0]!r}: {body!r}")
            return
        made = json.loads(body)["usage"]["completion_tokens"]
        if made != self._asked.num_new:
            self._fail(f"asked for {self._asked.num_new} tokens, got {made}")
            return
        self._ask_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._fail(f"the server closed a connection: {error}")

    def _ask_next(self) -> None:
        request = next(self._left, None)
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._asked = request
        self._transport.write(request.data)

    def _fail(self, message: str) -> None:
        self.done.set_exception(RuntimeError(message))
        self._transport.close()
