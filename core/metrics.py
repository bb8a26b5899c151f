"""The metrics of one attempt at a job: one JSON object a line, appended by its worker, read by anyone."""

import json
from pathlib import Path

from pydantic import BaseModel

from core.jobs import EvalPoint, LossCurve, TrainPoint

METRICS_FILE = "metrics.jsonl"


class Metric(BaseModel):
    """One line: either a training point or an evaluation point."""

    train: TrainPoint | None = None
    eval: EvalPoint | None = None

    @property
    def step(self) -> int:
        point = self.train or self.eval
        return point.step if point else 0


def append_metric(attempt: Path, metric: Metric) -> None:
    """Adds a line to the attempt's curve."""
    line = metric.model_dump_json(exclude_none=True) + "\n"
    with (attempt / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(line)


def read_curve(attempt: Path, after_step: int = -1) -> LossCurve:
    """The points with `step` > `after_step`; empty if nothing was written yet."""
    curve = LossCurve()
    try:
        lines = (attempt / METRICS_FILE).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return curve
    for line in lines[:-1]:  # a line without its newline is still being written
        try:
            metric = Metric.model_validate(json.loads(line))
        except ValueError:
            continue  # a line that a power cut left torn
        if metric.step <= after_step:
            continue
        if metric.train:
            curve.train.append(metric.train)
        if metric.eval:
            curve.eval.append(metric.eval)
    return curve
