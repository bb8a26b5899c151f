"""Answers that are made of server-sent events."""

from collections.abc import AsyncIterator

from fastapi.sse import EventSourceResponse


class EventStream(EventSourceResponse):
    """Events, already encoded, that no cache and no proxy holds back. FastAPI's own adds that to generators alone."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
