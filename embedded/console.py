"""The terminal that all processes write to: whole lines, each with the name of who said it."""

import sys
import threading
import time
from typing import TextIO


class Console:
    """Safe from any thread. Once nobody reads any more, lines are dropped."""

    def __init__(self, out: TextIO | None = None, *, width: int = 8) -> None:
        self._out = out or sys.stdout
        self._width = width
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def write(self, name: str, line: str) -> None:
        with self._lock:
            try:
                self._out.write(f"{name:<{self._width}} | {line}\n")
                self._out.flush()
            except (OSError, ValueError):  # `make serve | head`: gone or closed
                pass

    def stage(self, line: str) -> None:
        """A line of our own, with the seconds since the start."""
        self.write("dragoman", f"[{time.monotonic() - self._started:5.1f} s] {line}")
