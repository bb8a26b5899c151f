"""Work that ends with its client, and what else may end it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.disconnection import unless_disconnected


def run(test: Callable[["Client"], Awaitable[None]]) -> None:
    async def main() -> None:
        client = Client()
        async with asyncio.timeout(30):
            await test(client)
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the watch goes on"

    asyncio.run(main())


class Client:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.request = Request({"type": "http"}, self.messages.get)

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


def test_who_stays_is_answered() -> None:
    async def test(client: Client) -> None:
        client.messages.put_nowait({"type": "http.request", "body": b"the rest"})
        assert await unless_disconnected(client.request, asyncio.sleep(0.01, "done")) == "done"

    run(test)


def test_who_leaves_ends_the_work_and_nothing_else() -> None:
    async def test(client: Client) -> None:
        ended = False

        async def work() -> None:
            nonlocal ended
            try:
                await asyncio.Event().wait()
            finally:
                ended = True

        asyncio.get_running_loop().call_later(0.01, client.leave)
        with pytest.raises(ClientDisconnect):
            await unless_disconnected(client.request, work())
        assert ended
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        await asyncio.sleep(0)  # raises if a cancellation is still to come

    run(test)


def test_an_error_of_the_work_is_told() -> None:
    async def test(client: Client) -> None:
        async def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await unless_disconnected(client.request, fail())

    run(test)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_task_that_is_cancelled_stays_so(leaves: bool) -> None:
    async def test(client: Client) -> None:
        task = asyncio.create_task(
            unless_disconnected(client.request, asyncio.sleep(60))  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.01)
        task.cancel()
        if leaves:
            client.leave()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test)


@pytest.mark.parametrize("leaves_first", [False, True])
def test_the_answer_and_the_departure_at_the_same_moment(leaves_first: bool) -> None:
    """Whichever counts, no cancellation is left in the task."""

    async def test(client: Client) -> None:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def both() -> None:
            if leaves_first:
                client.leave()
            answer.set_result("done")
            if not leaves_first:
                client.leave()

        asyncio.get_running_loop().call_later(0.01, both)
        with suppress(ClientDisconnect):
            assert await unless_disconnected(client.request, answer) == "done"
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    run(test)
