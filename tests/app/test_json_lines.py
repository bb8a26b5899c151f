import asyncio

import pytest
from starlette.types import Message

from app.json_lines import JsonLines


@pytest.mark.parametrize("lengths", [[], [0], [70_000], [10] * 30_000, [65_535, 1, 200_000, 3]])
def test_all_lines_in_few_chunks(lengths: list[int]) -> None:
    lines = [f'"{"é" * length}"\n' for length in lengths]
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is asked of the client")

    response = JsonLines(iter(lines), {"Content-Disposition": "attachment"})
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
    asyncio.run(response(scope, receive, send))

    start, *body = messages
    assert (b"content-type", b"application/jsonl") in start["headers"]
    assert (b"content-disposition", b"attachment") in start["headers"]
    chunks = [message["body"] for message in body if message["body"]]
    assert b"".join(chunks).decode() == "".join(lines)
    assert len(chunks) <= 1 + sum(map(len, lines)) // 65_536
