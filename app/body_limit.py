"""Refuses bodies that are too large, before they are read whole.

FastAPI's own `max_body_size` answers in plain text whatever handlers are installed; here the refusal passes through
them as any other.
"""

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MIB = 1024 * 1024
_FORM_SLACK = 64 * 1024  # what a form needs around its file


class BodyLimitMiddleware:
    """Limits bodies to `max_body_mb`, those that carry a file to `max_upload_mb`."""

    def __init__(
        self, app: ASGIApp, max_body_mb: int, max_upload_mb: int, upload_paths: tuple[str, ...]
    ) -> None:
        self._app = app
        self._max_body = max_body_mb * _MIB
        self._max_upload = max_upload_mb * _MIB + _FORM_SLACK
        self._upload_paths = upload_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        limit = self._max_upload if path in self._upload_paths else self._max_body
        num_read = 0

        async def receive_limited() -> Message:
            nonlocal num_read
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > limit or _announced(scope) > limit:
                raise HTTPException(
                    413, f"the body is larger than the {limit:,} bytes accepted at {path}"
                )
            return message

        await self._app(scope, receive_limited, send)


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
