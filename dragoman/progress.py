"""A job's live state from its events, and how a terminal shows it. rich is loaded only where it is shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any

from dragoman.errors import DragomanError
from dragoman.events import JobEvent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_BARS = "▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH = 24
_PLAIN_LINES = 10  # of a whole run, where there is no terminal


@dataclass
class LiveJob:
    """What the events of a job add up to."""

    status: str = "queued"
    step: int = 0
    total_steps: int | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    losses: dict[int, float] = field(default_factory=dict)  # by step
    eval_losses: dict[int, float] = field(default_factory=dict)

    def take(self, event: JobEvent) -> None:
        data = event.data
        if event.kind in ("status", "done"):
            self.status = data.get("status", self.status)
        if (step := data.get("restart_after_step")) is not None:  # later points come again
            self.losses = {s: loss for s, loss in self.losses.items() if s <= step}
            self.eval_losses = {s: loss for s, loss in self.eval_losses.items() if s <= step}
        progress: dict[str, Any] = data.get("progress") or {}
        self.step = progress.get("step", self.step)
        self.total_steps = progress.get("total_steps", self.total_steps)
        self.tokens_per_second = progress.get("tokens_per_second", self.tokens_per_second)
        self.eta_seconds = progress.get("eta_seconds", self.eta_seconds)
        for key, points in (("train", self.losses), ("eval", self.eval_losses)):
            if point := data.get(key):
                points[point["step"]] = point["loss"]

    @property
    def loss(self) -> float | None:
        return self.losses[max(self.losses)] if self.losses else None

    def describe(self) -> str:
        """Loss, validation loss and speed, those that are known."""
        parts = []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.eval_losses:
            parts.append(f"held-out loss {self.eval_losses[max(self.eval_losses)]:.3f}")
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.eta_seconds and self.status == "running":
            parts.append(f"{duration(self.eta_seconds)} left")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """Such as 42 s, 3:07, 1:02:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def sparkline(values: list[float], width: int = _SPARKLINE_WIDTH) -> str:
    """At most `width` characters, from the lowest to the highest; each the mean of its share of `values`."""
    if not values:
        return ""
    num = min(width, len(values))
    bounds = [len(values) * i // num for i in range(num + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((m - low) * scale)] for m in means)


@contextmanager
def watcher(shown: bool, console: "Console | None" = None) -> Iterator[Callable[[JobEvent], None]]:
    """A function that takes events and shows them on stderr: a bar in a terminal, plain lines elsewhere."""
    if not shown:
        yield lambda event: None
        return
    try:
        from rich.console import Console
    except ImportError as error:
        raise DragomanError("progress needs the package rich: pip install rich") from error
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines(console.file).show
        return
    with _bar(console) as bar:
        task = bar.add_task("queued", total=None, details="", curve="")
        job = LiveJob()

        def show(event: JobEvent) -> None:
            job.take(event)
            bar.update(
                task,
                description=job.status,
                completed=job.step,
                total=job.total_steps,
                curve=sparkline([job.losses[step] for step in sorted(job.losses)]),
                details=job.describe(),
            )

        yield show


def _bar(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[curve]}", style="cyan"),
        TextColumn("{task.fields[details]}"),
        console=console,
    )


class _PlainLines:
    """A line for each change of status and for each tenth of the run."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self._out = out or sys.stderr
        self._job = LiveJob()
        self._status = ""
        self._tenth = -1

    def show(self, event: JobEvent) -> None:
        job = self._job
        job.take(event)
        tenth = _PLAIN_LINES * job.step // job.total_steps if job.total_steps else 0
        if job.status == self._status and tenth <= self._tenth:
            return
        self._status, self._tenth = job.status, tenth
        steps = f"step {job.step}/{job.total_steps}" if job.total_steps else ""
        print("  ".join(p for p in (job.status, steps, job.describe()) if p), file=self._out)
