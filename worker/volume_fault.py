"""Whether a run failed because the shared volume did, however deep below and in whichever library."""

import errno
import os
from collections.abc import Iterator

from core.jobs import JobError

_FAULTS = {
    "volume_full": ("the shared volume is full", (errno.ENOSPC, errno.EDQUOT)),
    "volume_read_only": (
        "the shared volume cannot be written",
        (errno.EROFS, errno.EACCES, errno.EPERM),
    ),
    "volume_unavailable": (
        "the shared volume does not answer as it should",
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
    ),
}


def volume_fault(error: BaseException) -> JobError | None:
    """What to tell a job's owner; None if it was something else."""
    for cause in _chain(error):
        for code, (message, numbers) in _FAULTS.items():
            number = _number(cause)
            if number in numbers:
                return JobError(code=code, message=f"{message}: {os.strerror(number)}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    # safetensors' writer is Rust: "I/O error: No space left on device (os error 28)".
    _, found, rest = text.partition("os error ")
    if found and rest.partition(")")[0].isdigit():
        return int(rest.partition(")")[0])
    # torch.save's is C++, and forgets why a write came up short.
    if isinstance(error, RuntimeError) and "inline_container.cc" in text:
        return errno.ENOSPC
    return None
