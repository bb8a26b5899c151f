"""The metrics of one attempt at a job: one JSON object a line, appended by its worker, read by anyone."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from core.jobs import EvalPoint, LossCurve, TrainPoint

METRICS_FILE = "metrics.jsonl"
_BLOCK_BYTES = 64 * 1024


class Metric(BaseModel):
    """One line: a training point, an evaluation point, or a restart.

    `restart_after_step`: the run goes on from this step (0: it begins anew), so whoever holds points of later steps
    drops them. The file is only ever appended to: nobody who reads it sees half a rewrite.
    """

    train: TrainPoint | None = None
    eval: EvalPoint | None = None
    restart_after_step: int | None = None

    @property
    def step(self) -> int:
        point = self.train or self.eval
        return point.step if point else 0


def append_metric(attempt: Path, metric: Metric) -> None:
    """Adds a line to the attempt's curve."""
    line = metric.model_dump_json(exclude_none=True) + "\n"
    with (attempt / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(line)


def carry_curve(source: Path, attempt: Path) -> None:
    """Begins the curve of `attempt` with the whole lines of the attempt `source`, which may be the same one."""
    try:
        content = (source / METRICS_FILE).read_bytes()
    except FileNotFoundError:
        return
    staged = attempt / f"{METRICS_FILE}.staged"
    staged.write_bytes(content[: content.rfind(b"\n") + 1])
    staged.replace(attempt / METRICS_FILE)


def curve_version(attempt: Path) -> str:
    """Changes whenever the curve does; costs no reading."""
    try:
        found = (attempt / METRICS_FILE).stat()
    except FileNotFoundError:
        return ""
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def read_curve(attempt: Path, after_step: int = -1) -> LossCurve:
    """The points that count with `step` > `after_step`, oldest first; empty if nothing was written yet.

    Read from the end: asking for the newest points costs the same however long the curve is.
    """
    curve = LossCurve()
    last_step = math.inf  # of the points that a later restart has not made void
    for line in _lines_from_the_end(attempt / METRICS_FILE):
        try:
            metric = Metric.model_validate_json(line)
        except ValidationError:
            continue  # a line that a power cut left torn
        if metric.restart_after_step is not None:
            last_step = min(last_step, metric.restart_after_step)
        elif metric.step <= after_step:
            break
        elif metric.step <= last_step:
            if metric.train:
                curve.train.append(metric.train)
            if metric.eval:
                curve.eval.append(metric.eval)
        if last_step <= after_step:
            break
    curve.train.reverse()
    curve.eval.reverse()
    return curve


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, newest first; one without its newline is still being written."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        position = file.seek(0, os.SEEK_END)
        tail: bytes | None = None  # the beginning of the line that the last block cut
        while position > 0:
            size = min(_BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            lines = (file.read(size) + (tail or b"")).split(b"\n")
            if tail is None:
                lines.pop()  # after the last newline
            tail = lines[0] if lines else None
            yield from reversed(lines[1:])
        if tail:
            yield tail
