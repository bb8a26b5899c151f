"""A server that stops: it answers what it has begun, and says 503 to what is new."""

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.problems import problem

ALWAYS_ANSWERED = ("/health", "/metrics")


class DrainingMiddleware:
    """Refuses requests once `stopping` is set. Their connections are closed: the next one goes to another server."""

    def __init__(self, app: ASGIApp, stopping: asyncio.Event) -> None:
        self._app = app
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or not self._stopping.is_set()
            or scope["path"] in ALWAYS_ANSWERED
        ):
            await self._app(scope, receive, send)
            return
        headers = {"Retry-After": "2", "Connection": "close"}
        detail = "the server is stopping; try again, another one takes over"
        answer = problem(Request(scope), 503, "stopping", detail, headers=headers)
        await answer(scope, receive, send)
