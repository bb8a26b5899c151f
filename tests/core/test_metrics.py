"""The loss curve as a file that one process appends to while others read it."""

from pathlib import Path

from core.jobs import EvalPoint, LossCurve, TrainPoint
from core.metrics import METRICS_FILE, Metric, append_metric, read_curve


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


def test_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    point = TrainPoint(step=1, epoch=0.1, loss=1.0, grad_norm=None)
    append_metric(tmp_path, Metric(train=point))
    assert "NaN" not in (tmp_path / METRICS_FILE).read_text()
    assert read_curve(tmp_path).train == [point]
