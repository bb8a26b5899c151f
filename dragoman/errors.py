"""Every failure that the client raises. A refusal by the server carries its problem document (RFC 9457)."""

import json
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from dragoman.models import Job


class DragomanError(Exception):
    """The base of all."""


class ConnectionFailedError(DragomanError):
    """The server cannot be reached, or the connection broke."""


class TimedOutError(DragomanError):
    """The answer, or the end of a job, did not come in the time given."""


class UnexpectedAnswerError(DragomanError):
    """What answered is no Dragoman server, or one that speaks another version of the contract."""


class UnsendableError(DragomanError, ValueError):
    """What no request can hold: NaN, infinity, half a surrogate pair, an empty id, a key beyond ASCII, a bad URL."""


class JobFailedError(DragomanError):
    """A job that was waited for has failed; `job` has the whole record."""

    def __init__(self, job: "Job") -> None:
        reason = f"{job.error.message} ({job.error.code})" if job.error else "no reason was given"
        super().__init__(f"job {job.id} failed: {reason}")
        self.job = job


class ApiError(DragomanError):
    """The server refused. `code` is stable; `detail` names the value and what would be accepted.

    `errors` are the single faults of a validation, `{"loc", "msg"}`; `extra` holds what else the problem says,
    such as the `report` of a dataset or the `adapters` that exist; `retry_after_s` is Retry-After, in seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: list[dict[str, Any]] | None = None,
        extra: dict[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors or []
        self.extra = extra or {}
        self.retry_after_s = retry_after_s

    def to_dict(self) -> dict[str, Any]:
        """As the problem document has it."""
        problem: dict[str, Any] = {"status": self.status, "code": self.code, "detail": self.detail}
        return problem | ({"errors": self.errors} if self.errors else {}) | self.extra


class AuthenticationError(ApiError):
    """401: no key, or an unknown one."""


class ForbiddenError(ApiError):
    """403: the key may not do this."""


class NotFoundError(ApiError):
    """404: there is no such adapter, job or dataset."""


class ConflictError(ApiError):
    """409: not in this state."""


class InvalidError(ApiError):
    """400, 413, 415, 422: the request holds a value that is not accepted."""


class UnavailableError(ApiError):
    """429, 503: not now, and the retries are used up."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidError,
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
    429: UnavailableError,
    503: UnavailableError,
}
_KNOWN = {"type", "title", "status", "detail", "code", "errors", "error"}


def from_problem(
    status: int, problem: dict[str, Any], retry_after_s: float | None = None
) -> ApiError:
    """A problem document -> the exception for its status."""
    return _BY_STATUS.get(status, ApiError)(
        status,
        str(problem.get("code", "http_error")),
        str(problem.get("detail") or problem.get("title") or f"the server answered {status}"),
        errors=problem.get("errors"),
        extra={k: v for k, v in problem.items() if k not in _KNOWN},
        retry_after_s=retry_after_s,
    )


def from_response(response: httpx.Response, retry_after_s: float | None = None) -> ApiError:
    """An answer of 400 or above, its body read -> an exception; also where a proxy wrote it."""
    try:
        problem = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": f"{response.url} answered {response.status_code}"}
    return from_problem(response.status_code, problem, retry_after_s)
