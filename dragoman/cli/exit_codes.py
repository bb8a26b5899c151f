"""What the command's exit code says."""

from enum import IntEnum

import typer

from dragoman.errors import (
    ApiError,
    ConnectionFailedError,
    DragomanError,
    TimedOutError,
    UnexpectedAnswerError,
    UnsendableError,
)


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1  # a job, some lines, a check of doctor, a file that cannot be read or written
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    INTERRUPTED = 130


class WrongUsageError(DragomanError):
    """The options do not go together."""


EPILOG = (
    "Exit codes: 0 done; 1 failed (a job, some lines, a check); 2 wrong usage; 3 the server cannot be "
    "reached; 4 the server refused; 130 interrupted."
)


def code_of(error: Exception) -> ExitCode:
    if isinstance(error, ApiError):
        return ExitCode.REFUSED
    if isinstance(error, (ConnectionFailedError, TimedOutError, UnexpectedAnswerError)):
        return ExitCode.UNREACHABLE
    if isinstance(error, (WrongUsageError, UnsendableError)):
        return ExitCode.USAGE
    if isinstance(error, typer.TyperException):
        return ExitCode(error.exit_code)
    return ExitCode.FAILED
