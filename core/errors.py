"""Every failure that the service expects, with the HTTP status and the stable code it carries."""

from typing import Any


class ServiceError(Exception):
    """A failure that a caller can understand and act on.

    `message` names the offending value and what would be accepted. `extra` are further members of the
    problem document (RFC 9457, section 3.2), such as `errors` or `adapters`.
    """

    status_code = 500
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after_s: int | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s
        self.extra = extra


class MalformedError(ServiceError):
    status_code = 400
    code = "malformed"


class NotFoundError(ServiceError):
    status_code = 404
    code = "not_found"


class ConflictError(ServiceError):
    status_code = 409
    code = "conflict"


class TooLargeError(ServiceError):
    status_code = 413
    code = "too_large"


class InvalidError(ServiceError):
    status_code = 422
    code = "invalid"


class UnavailableError(ServiceError):
    """Not now: the caller may try again after `retry_after_s` seconds."""

    status_code = 503
    code = "unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: int = 1, **extra: Any
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s, **extra)
