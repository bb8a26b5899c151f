"""Errors -> application/problem+json (RFC 9457): the one place that maps what failed to HTTP."""

import errno
import http
import logging
import re
from typing import Any

import redis
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from core.errors import ServiceError

logger = logging.getLogger(__name__)

_CLIENT_GONE = 499  # nginx's number; nobody reads it but the metrics

# Paths that LibreTranslate's clients call; they look for `error`.
_LIBRETRANSLATE_PATHS = ("/translate", "/languages", "/detect", "/suggest", "/frontend/settings")
_VOLUME_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENOTCONN),  # it is gone
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 400: "malformed"}


class OpenAIError(BaseModel):
    """What OpenAI's clients read out of `{"error": …}`. `param` is the field that was wrong, where it was one."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str

    @classmethod
    def of(cls, error: ServiceError) -> "OpenAIError":
        return cls.made(error.status_code, error.code, error.message)

    @classmethod
    def made(cls, status: int, code: str, message: str, param: str | None = None) -> "OpenAIError":
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return cls(message=message, type=kind, param=param, code=code)


class OpenAIErrorBody(BaseModel):
    error: OpenAIError


def is_openai_path(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")


def install(app: FastAPI) -> None:
    """Registers the handlers."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(redis.RedisError, _on_redis_error)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(Exception, _on_bug)


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **extra,
    }
    # Not request.url: that is made with the Host header, which may be anything.
    if is_openai_path(request.scope["path"]):
        fault = OpenAIError.made(status, code, detail, _param(extra.get("errors")))
        # OpenAI's own answer to a value that cannot be; its clients tell errors apart by status.
        status = 400 if status == 422 else status
        return JSONResponse(OpenAIErrorBody(error=fault).model_dump(), status, headers=headers)
    if request.scope["path"].rstrip("/") in _LIBRETRANSLATE_PATHS:
        body["error"] = detail
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


async def _on_service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
    return problem(
        request, error.status_code, error.code, error.message, headers=headers, **error.extra
    )


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return problem(request, 400, "malformed", f"the body is not JSON: {faults[0]['msg']}")
    errors = [{"loc": [_safe(p) for p in f["loc"]], "msg": _message(f)} for f in faults]
    return problem(request, 422, "invalid", "; ".join(map(_describe, faults[:10])), errors=errors)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == "Not Found":
        detail = f"there is no {request.scope['path'][:200]!r}; /docs lists what there is"
    code = _CODES.get(error.status_code, "http_error")
    headers = dict(error.headers) if error.headers else None
    return problem(request, error.status_code, code, detail, headers=headers)


async def _on_redis_error(request: Request, error: Exception) -> JSONResponse:
    gone = isinstance(error, (redis.ConnectionError, redis.TimeoutError))
    if not gone:  # its memory or disk is full, say
        logger.error("Redis refused a command", exc_info=error)
    what = "cannot be reached" if gone else "refuses commands"
    detail = f"Redis, which keeps the job records, {what}: {error}"
    headers = {"Retry-After": "2"}
    return problem(request, 503, "redis_unavailable", detail, headers=headers)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """It left before its body was whole: no failure of ours."""
    return Response(status_code=_CLIENT_GONE)


async def _on_os_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno not in _VOLUME_ERRNOS:
        return await _on_bug(request, error)
    logger.error("the volume failed", exc_info=error)
    detail = f"the volume cannot be read or written: {error.strerror}"
    headers = {"Retry-After": "30"}
    return problem(request, 503, "volume_unavailable", detail, headers=headers)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return problem(request, 500, "internal_error", "the server failed; its log says why")


def _param(errors: list[dict[str, Any]] | None) -> str | None:
    if not errors:
        return None
    return ".".join(str(part) for part in errors[0]["loc"] if part != "body") or None


def _describe(fault: dict[str, Any]) -> str:
    place = ".".join(str(_safe(p)) for p in fault["loc"] if p != "body") or "body"
    value = fault.get("input")
    shown = "" if fault["type"] == "missing" else f" (got {_shorten(value)})"
    return f"{place}: {_message(fault)}{shown}"


def _message(fault: dict[str, Any]) -> str:
    message = str(fault["msg"])
    if isinstance(fault.get("input"), str):
        # Of a text that is checked for more than its length, pydantic tells the length in items.
        return re.sub(r" item(s?) after validation", r" character\1", message)
    return message


def _shorten(value: Any) -> str:
    # Never repr() something huge only to cut it.
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        value = value[:80]
    return ascii(value)[:100]


def _safe(part: Any) -> Any:
    """Keys are a client's input too: no half surrogate may reach the encoder."""
    return (
        part.encode("utf-8", "backslashreplace").decode()[:100] if isinstance(part, str) else part
    )
