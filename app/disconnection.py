"""Work for a client that may go away while it is done."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

_Result = TypeVar("_Result")


async def unless_disconnected(request: Request, work: Awaitable[_Result]) -> _Result:
    """Awaits `work`, but cancels it when the client goes away. Raises ClientDisconnect, which no client ever reads.

    As asyncio.timeout does it: the work stays in the caller's task, and only the watch has one of its own.
    """
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
