"""Runs processes side by side: shows their output, and when one ends or a signal comes, stops all.

SIGTERM goes to a process alone, never to its children: a Celery worker decides itself what becomes of them.
"""

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

from embedded.console import Console
from embedded.lifeline import die_with_parent

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# One Ctrl-C may come twice, from the terminal and from `make`; a person's second one comes later.
_SAME_SIGNAL_S = 1.0


@dataclass(frozen=True)
class Ended:
    """A process is no more. `returncode` is negative if a signal ended it."""

    name: str
    returncode: int


class StopSignals:
    """Ctrl-C, SIGTERM and a closed terminal become events, as long as the context lasts."""

    def __init__(self) -> None:
        # A SimpleQueue, because a handler may run in the middle of another put.
        self.events: queue.SimpleQueue[Ended | signal.Signals] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._note)
            for number in _STOP_SIGNALS
            # nohup: to go on without a terminal was asked for
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.events.put(signal.Signals(number))


class ProcessRunner:
    """Use as a context manager: nothing that was started outlives it."""

    def __init__(self, console: Console, signals: StopSignals, *, grace_s: float) -> None:
        self._console = console
        self._events = signals.events
        self._grace_s = grace_s
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._ended: set[str] = set()

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Starts a process in a group of its own, so that Ctrl-C reaches only us."""
        process = subprocess.Popen(  # noqa: S603
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._processes[name] = process
        reader = threading.Thread(target=self._show_output, args=(name, process), daemon=True)
        reader.start()
        self.watch(name, process, reader)

    def watch(
        self,
        name: str,
        process: "subprocess.Popen[str] | subprocess.Popen[bytes]",
        reader: threading.Thread | None = None,
    ) -> None:
        """The end of `process` is an event too; who started it stops it."""

        def wait() -> None:
            returncode = process.wait()
            if reader is not None:
                reader.join(1.0)  # its last words come first; a child of its own may hold the pipe
            self._events.put(Ended(name, returncode))

        threading.Thread(target=wait, daemon=True).start()

    def wait(self) -> int:
        """Blocks until a process ends or a signal comes; then stops all.

        Returns the exit code: 0 if we were asked to stop, else that of the process that ended.
        """
        event = self._events.get()
        if isinstance(event, signal.Signals):
            self._console.stage(f"{event.name}: stopping")
            self.stop()
            return 0
        self._ended.add(event.name)
        self._console.stage(f"{event.name} {_describe(event.returncode)}: stopping the others")
        self.stop()
        # As a shell does it; but an end that nobody asked for is a failure even with code 0.
        return 128 - event.returncode if event.returncode < 0 else event.returncode or 1

    def stop(self) -> None:
        """SIGTERM to all; SIGKILL to those still there after `grace_s`, or at a second signal."""
        for name in self._processes.keys() - self._ended:
            self._processes[name].terminate()
        started = time.monotonic()
        deadline = started + self._grace_s
        while self._processes.keys() - self._ended:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(event, Ended):
                self._ended.add(event.name)
                self._console.stage(f"{event.name} stopped")
            elif time.monotonic() - started > _SAME_SIGNAL_S:
                break
        for name in sorted(self._processes.keys() - self._ended):
            self._console.stage(f"{name} did not stop in time: killing it")
        for process in self._processes.values():
            _kill_group(process.pid)  # also what an ended process has left behind
            process.wait()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _show_output(self, name: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if text := line.rstrip():
                    self._console.write(name, text)


def _describe(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with code {returncode}"


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
