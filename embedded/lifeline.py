"""Ties a child process to its parent, so that a killed parent leaves nothing running."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded here and not in the child: between fork and exec as little as possible may happen.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """For subprocess' preexec_fn: the child gets SIGTERM when its parent is gone. Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
