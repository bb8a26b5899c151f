"""The loss curve as a file that one process appends to while others read it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.jobs import EvalPoint, LossCurve, Progress, TrainPoint
from core.metrics import METRICS_FILE, Metric, append_metric, curve_version, read_curve


def train_metric(step: int) -> Metric:
    return Metric(train=TrainPoint(step=step, epoch=step / 10, loss=1 / step, learning_rate=1e-3))


def test_nothing_yet(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == LossCurve()
    assert read_curve(tmp_path / "no such folder") == LossCurve()


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    metrics = [train_metric(1), Metric(eval=EvalPoint(step=1, loss=2.0)), train_metric(2)]
    for metric in metrics:
        append_metric(tmp_path, metric)
    curve = read_curve(tmp_path)
    assert curve.train == [metrics[0].train, metrics[2].train]
    assert curve.eval == [metrics[1].eval]


def test_only_newer_points(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_metric(tmp_path, train_metric(step))
    assert [p.step for p in read_curve(tmp_path, after_step=1).train] == [2, 3]
    assert read_curve(tmp_path, after_step=3) == LossCurve()


def test_line_that_is_still_being_written(tmp_path: Path) -> None:
    append_metric(tmp_path, train_metric(1))
    whole = (tmp_path / METRICS_FILE).read_text()
    append_metric(tmp_path, train_metric(2))
    text = (tmp_path / METRICS_FILE).read_text()
    for end in range(len(whole), len(text)):
        (tmp_path / METRICS_FILE).write_text(text[:end])
        assert [p.step for p in read_curve(tmp_path).train] == [1]


def test_torn_line(tmp_path: Path) -> None:
    append_metric(tmp_path, train_metric(1))
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"train":{"step":2,"ep\n')
        file.write("\x00\x00\x00\n")
    append_metric(tmp_path, train_metric(3))
    assert [p.step for p in read_curve(tmp_path).train] == [1, 3]


def test_a_line_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    append_metric(tmp_path, train_metric(1))
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write("x" * 200_000 + "\n")
    append_metric(tmp_path, train_metric(3))
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write("y" * 200_000)
    assert [p.step for p in read_curve(tmp_path).train] == [1, 3]


def write(attempt: Path, *metrics: Metric) -> None:
    (attempt / METRICS_FILE).write_text(
        "".join(m.model_dump_json(exclude_none=True) + "\n" for m in metrics)
    )


def test_a_long_curve_whole_and_in_parts(tmp_path: Path) -> None:
    write(tmp_path, *(train_metric(step) for step in range(1, 5001)))
    assert [p.step for p in read_curve(tmp_path).train] == list(range(1, 5001))
    for after_step in (0, 1, 499, 2500, 4998, 4999, 5000, 10_000):
        steps = [p.step for p in read_curve(tmp_path, after_step).train]
        assert steps == list(range(after_step + 1, 5001)), after_step


def test_newest_points_are_read_from_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *(train_metric(step) for step in range(1, 5001)))
    num_parsed = 0
    parse = Metric.model_validate_json

    def count(line: bytes) -> Metric:
        nonlocal num_parsed
        num_parsed += 1
        return parse(line)

    monkeypatch.setattr(Metric, "model_validate_json", count)
    assert [p.step for p in read_curve(tmp_path, after_step=4998).train] == [4999, 5000]
    assert num_parsed == 3


def restart(after_step: int) -> Metric:
    return Metric(restart_after_step=after_step)


@pytest.mark.parametrize(
    ("metrics", "steps"),
    [
        ([1, 2, 3, restart(0)], []),
        ([1, 2, 3, restart(0), 1, 2], [1, 2]),
        ([1, 2, 3, restart(2), 3, 4], [1, 2, 3, 4]),
        ([1, 2, 3, 4, 5, restart(2), 3, 4, restart(3), 4], [1, 2, 3, 4]),
        ([1, 2, 3, 4, restart(3), 4, 5, restart(1), 2], [1, 2]),
        ([restart(0), 1, restart(0), restart(0), 1], [1]),
    ],
)
def test_a_restart_makes_later_steps_void(
    tmp_path: Path, metrics: list[Any], steps: list[int]
) -> None:
    write(tmp_path, *(train_metric(m) if isinstance(m, int) else m for m in metrics))
    for after_step in range(-1, 6):
        expected = [s for s in steps if s > after_step]
        assert [p.step for p in read_curve(tmp_path, after_step).train] == expected


def test_evaluations_are_void_after_a_restart_too(tmp_path: Path) -> None:
    old, new = (Metric(eval=EvalPoint(step=2, loss=loss)) for loss in (9.0, 1.0))
    write(tmp_path, train_metric(2), old, restart(0), train_metric(1), train_metric(2), new)
    assert read_curve(tmp_path).eval == [new.eval]
    assert read_curve(tmp_path, after_step=1).eval == [new.eval]


def test_version_changes_with_the_curve(tmp_path: Path) -> None:
    versions = [curve_version(tmp_path)]
    for step in (1, 2):
        append_metric(tmp_path, train_metric(step))
        versions.append(curve_version(tmp_path))
        assert curve_version(tmp_path) == versions[-1]
    assert len(set(versions)) == 3


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks(tmp_path: Path, value: float) -> None:
    point = TrainPoint(
        step=1, epoch=0.1, loss=1.0, grad_norm=value, learning_rate=value, memory_mb=value
    )
    append_metric(tmp_path, Metric(train=point))
    line = (tmp_path / METRICS_FILE).read_text()
    assert json.loads(line) == {"train": {"step": 1, "epoch": 0.1, "loss": 1.0}}
    assert read_curve(tmp_path).train == [point]
    assert Progress(eta_seconds=value, tokens_per_second=value).eta_seconds is None
    with pytest.raises(ValidationError):
        TrainPoint(step=1, epoch=0.1, loss=value)
    with pytest.raises(ValidationError):
        EvalPoint(step=1, loss=value)
