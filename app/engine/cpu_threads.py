"""How many threads torch computes with on a CPU, and in which threads of the process."""

import logging
import os
import time
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

_WINDOW_S = 0.25
_HELD_UP = 0.7  # of a window computed, or less; undisturbed it is 0.95 to 1
_FIRST_TRIAL_S = 5.0
_LAST_TRIAL_S = 60.0


def stay_single_threaded() -> None:
    """Keeps torch in the calling thread from making a pool of threads; call before the engine starts.

    libgomp lets waiting threads spin only while there are no more of them than processors. With a second pool in the
    process each of the engine's small operations waits for a thread to wake: 887 tokens/s became 379.
    """
    torch.set_num_threads(1)
    # A thread takes the setting over at its first parallel operation, whatever it is by then.
    torch.ones(1 << 16).add_(1)


def num_processors() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class EngineThreads:
    """One for each processor, fewer while other processes need the processors. Lives on the engine's thread.

    The threads meet after each of a step's many small operations, so one that is kept from running holds up all: on two
    cores, beside one busy process of another session, a step of 15 ms took 850. It shows in how little of its time the
    thread that waits for it computes. A thread is given up after each window of that kind, and tried again later.
    """

    def __init__(
        self,
        most: int,
        *,
        apply: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = self._most = most
        self._apply = apply
        self._clock = clock
        self._wall_s = self._cpu_s = 0.0
        self._is_trial = False
        self._patience_s = _FIRST_TRIAL_S
        self._try_at = 0.0
        apply(most)

    def note(self, wall_s: float, cpu_s: float) -> None:
        """What a turn of the engine took, and how much of it its thread computed."""
        self._wall_s += wall_s
        self._cpu_s += cpu_s
        if self._wall_s < _WINDOW_S:
            return
        is_held_up = self._cpu_s < _HELD_UP * self._wall_s
        self._wall_s = self._cpu_s = 0.0
        now = self._clock()
        if is_held_up and self.number > 1:
            longer_s = min(2 * self._patience_s, _LAST_TRIAL_S)
            self._patience_s = longer_s if self._is_trial else _FIRST_TRIAL_S
            self._try_at = now + self._patience_s
            self._set(self.number - 1)
            self._is_trial = False
        elif self.number < self._most and now >= self._try_at:
            self._set(self.number + 1)
            self._is_trial = True
            self._try_at = now + _FIRST_TRIAL_S
        elif self._is_trial:
            self._is_trial, self._patience_s = False, _FIRST_TRIAL_S

    def _set(self, number: int) -> None:
        logger.debug("%d of %d threads, after %d", number, self._most, self.number)
        self.number = number
        self._apply(number)
