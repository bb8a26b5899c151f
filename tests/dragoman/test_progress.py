import io

import pytest
from rich.console import Console

from dragoman.events import JobEvent
from dragoman.progress import LiveJob, duration, sparkline, watcher


def metrics(step: int, loss: float, total: int = 10, **more: object) -> JobEvent:
    progress = {"step": step, "total_steps": total, "tokens_per_second": 1234.5, "eta_seconds": 61}
    return JobEvent(
        "metrics", {"progress": progress, "train": {"step": step, "loss": loss}, **more}
    )


EVENTS = [
    JobEvent("status", {"status": "queued"}),
    JobEvent("status", {"status": "running"}),
    *(metrics(step, 10 / step) for step in range(1, 11)),
    JobEvent("metrics", {"eval": {"step": 10, "loss": 1.5}}),
    JobEvent("done", {"status": "succeeded"}),
]


def test_what_events_add_up_to() -> None:
    job = LiveJob()
    for event in EVENTS:
        job.take(event)
    assert (job.status, job.step, job.total_steps, job.loss) == ("succeeded", 10, 10, 1.0)
    assert job.eval_losses == {10: 1.5}
    assert job.describe() == "loss 1.000  held-out loss 1.500  1,234 tokens/s"


def test_a_run_that_goes_back_forgets_later_points() -> None:
    job = LiveJob()
    for step in range(1, 9):
        job.take(metrics(step, 1.0))
    job.take(JobEvent("metrics", {"restart_after_step": 3}))
    assert sorted(job.losses) == [1, 2, 3]
    job.take(JobEvent("metrics", {"restart_after_step": 0}))
    assert not job.losses


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0, 2.0], "▁▁▁"),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], "█▇▆▅▄▃▂▁"),
    ],
)
def test_sparkline(values: list[float], drawn: str) -> None:
    assert sparkline(values) == drawn


def test_a_long_curve_becomes_a_short_line() -> None:
    line = sparkline([1 / (1 + i) for i in range(100_000)], width=12)
    assert len(line) == 12
    assert (line[0], line[-1]) == ("█", "▁")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (61, "1:01"), (3729, "1:02:09")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_terminal_gets_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    with watcher(True, console) as show:
        for event in EVENTS:
            show(event)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10/10" in shown
    assert "loss 1.000" in shown
    assert "█" in shown


def test_a_pipe_gets_lines() -> None:
    console = Console(file=io.StringIO())
    with watcher(True, console) as show:
        for event in EVENTS:
            show(event)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "queued"
    assert lines[-1].startswith("succeeded  step 10/10")
    assert not any("\x1b" in line for line in lines)


def test_silence_where_it_was_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with watcher(False) as show:
        show(EVENTS[0])
    assert capsys.readouterr() == ("", "")
