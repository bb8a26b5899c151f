"""The log of one attempt at a job, as a file that its owner may read."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_FILE = "log.txt"


@contextmanager
def job_log(attempt: Path) -> Iterator[None]:
    """Writes our own log lines, and the warnings of libraries, to the attempt's log.txt as well."""
    handler = logging.FileHandler(attempt / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_is_wanted)
    root, ours = logging.getLogger(), logging.getLogger("worker")
    level = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)
        handler.close()


def _is_wanted(record: logging.LogRecord) -> bool:
    if record.name.startswith("worker."):
        return True
    # py.warnings: deprecations, which are for developers
    return record.levelno >= logging.WARNING and record.name != "py.warnings"
