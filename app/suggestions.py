"""Better translations that readers suggest, kept on the volume for a later training: one JSON object a line.

`suggestions/{adapter}.jsonl` can be uploaded as a dataset as it is.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from pydantic import BaseModel, ValidationError

from core.errors import UnavailableError
from core.volume import Volume

_MAX_FILE_BYTES = 16 * 1024 * 1024


class Suggestion(BaseModel):
    """`completion` is what somebody holds to be the right translation of `prompt`."""

    prompt: str
    completion: str
    source: str
    target: str
    adapter: str
    created_at: datetime


def add_suggestion(volume: Volume, adapter: str, suggestion: Suggestion) -> None:
    """Appends a line to the adapter's file. Raises UnavailableError `suggestions_full` at 16 MiB, and OSError."""
    path = volume.suggestions / f"{adapter}.jsonl"
    line = suggestion.model_dump_json().encode() + b"\n"
    # One write at the end of the file: lines of several servers do not mix.
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size + len(line) > _MAX_FILE_BYTES:
            raise UnavailableError(
                f"the suggestions for {adapter} fill {_MAX_FILE_BYTES:,} bytes already; the operator can "
                f"take suggestions/{path.name} from the volume",
                code="suggestions_full",
                retry_after_s=3600,
            )
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line  # a full volume took half of the last one
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def read_suggestions(volume: Volume, adapter: str | None = None) -> Iterator[Suggestion]:
    """Streams an adapter's, oldest first, or those of all, adapter by adapter. Raises OSError before the first."""
    files = [f"{adapter}.jsonl"] if adapter else (p.name for p in volume.suggestions.iterdir())
    names = sorted(files)
    return (found for name in names for found in _read(volume, name))


def _read(volume: Volume, name: str) -> Iterator[Suggestion]:
    with suppress(FileNotFoundError), (volume.suggestions / name).open("rb") as file:
        for line in file:
            with suppress(ValidationError):  # a full volume took half of it
                yield Suggestion.model_validate_json(line)
