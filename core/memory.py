"""Host memory that a process may still take: what the machine has free, within the limits that it runs under."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def free_host_bytes() -> int:
    """With what the page cache would give up: free pages alone are few on any machine that has run for a while."""
    return int(min([psutil.virtual_memory().available, *_left_in_cgroups()]))


def _left_in_cgroups() -> Iterator[float]:
    """Bytes left of each limit of a container or a system service: control groups, version 2."""
    try:
        found = re.search(r"^0::/(.*)$", os.fsdecode(_OWN_CGROUP.read_bytes()), re.M)
    except OSError:  # not Linux
        return
    own = _CGROUPS / found[1] if found else _CGROUPS
    for folder in (own, *own.parents):
        if folder.is_relative_to(_CGROUPS):
            yield _left(folder)


def _left(folder: Path) -> float:
    try:
        limit = int((folder / "memory.max").read_bytes())
        used = int((folder / "memory.current").read_bytes())
    except (OSError, ValueError):  # no limit can be set here, or none is: "max"
        return math.inf
    return max(0, limit - used + _cached(folder))


def _cached(folder: Path) -> int:
    """Bytes of the page cache that would be given up; 0 where that is not told."""
    try:
        found = re.search(rb"^inactive_file (\d+)$", (folder / "memory.stat").read_bytes(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0
