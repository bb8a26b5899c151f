"""Small real processes, run side by side."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from embedded.console import Console
from embedded.process_runner import ProcessRunner, StopSignals

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(600)"
)
SLOW = (
    "import signal, sys, time\n"
    "def end(*_): time.sleep(0.5); print('all done'); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
)


class Stage:
    """A runner with what it shows."""

    def __init__(self, grace_s: float = 300.0) -> None:
        self.out = io.StringIO()
        self.signals = StopSignals()
        self.runner = ProcessRunner(Console(self.out), self.signals, grace_s=grace_s)

    def start(self, name: str, program: str) -> None:
        self.runner.start(name, [sys.executable, "-c", program], dict(os.environ))

    def wait_for(self, text: str) -> str:
        deadline = time.monotonic() + 120
        while text not in self.out.getvalue():
            assert time.monotonic() < deadline, self.out.getvalue()
            time.sleep(0.01)
        return self.out.getvalue()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    with stage.signals, stage.runner:
        yield stage


def is_gone(pid: int) -> bool:
    """A zombie that only waits to be reaped by init counts as gone."""
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return status.stdout.strip()[:1] in ("", "Z")


def wait_until_gone(pid: int) -> None:
    """What was killed goes when it next gets a processor."""
    deadline = time.monotonic() + 60
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("sys.exit(7)", 7, "broken ended with code 7"),
        ("sys.exit(0)", 1, "broken ended with code 0"),
        ("os.kill(os.getpid(), 9)", 137, "broken was killed by SIGKILL"),
    ],
)
def test_one_that_ends_stops_the_others(stage: Stage, ending: str, code: int, words: str) -> None:
    stage.start("healthy", SLEEP)
    stage.wait_for("healthy  | up")
    stage.start("broken", f"import os, sys; print('last words'); sys.stdout.flush(); {ending}")
    assert stage.runner.wait() == code
    shown = stage.out.getvalue()
    assert shown.index("broken   | last words") < shown.index(words)
    assert "healthy stopped" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all(stage: Stage, number: signal.Signals) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as under nohup, and so it stays")
    stage.start("one", SLEEP)
    stage.start("two", SLEEP)
    stage.wait_for("one      | up")
    stage.wait_for("two      | up")
    os.kill(os.getpid(), number)
    assert stage.runner.wait() == 0
    shown = stage.out.getvalue()
    assert f"{number.name}: stopping" in shown
    assert "one stopped" in shown
    assert "two stopped" in shown


def test_deaf_process_is_killed_after_the_grace() -> None:
    stage = Stage(grace_s=0.3)
    with stage.signals, stage.runner:
        stage.start("deaf", DEAF)
        stage.wait_for("deaf     | up")
        os.kill(os.getpid(), signal.SIGTERM)
        assert stage.runner.wait() == 0
    assert "deaf did not stop in time: killing it" in stage.out.getvalue()


def test_second_signal_does_not_wait(stage: Stage) -> None:
    stage.start("deaf", DEAF)
    stage.wait_for("deaf     | up")
    os.kill(os.getpid(), signal.SIGINT)
    is_over = threading.Event()

    def insist() -> None:
        while not is_over.wait(0.4):
            os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=insist)
    person.start()
    try:
        assert stage.runner.wait() == 0
    finally:
        is_over.set()
        person.join()
    # Else it would wait for minutes.
    assert "deaf did not stop in time: killing it" in stage.out.getvalue()


def test_one_ctrl_c_that_comes_twice_is_one(stage: Stage) -> None:
    """`make` passes on what the terminal has already sent to all."""
    stage.start("slow", SLOW)
    stage.wait_for("slow     | up")
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stage.runner.wait() == 0
    assert "slow     | all done" in stage.out.getvalue()


def test_children_of_a_process_are_not_left_behind(stage: Stage) -> None:
    stage.start(
        "parent",
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=subprocess.DEVNULL)\n"
        "print('child', child.pid, flush=True)\n"
        "sys.exit(3)",
    )
    child = int(stage.wait_for("child ").split("child ")[1].split()[0])
    assert stage.runner.wait() == 3
    wait_until_gone(child)


def test_only_the_process_itself_gets_sigterm(stage: Stage) -> None:
    """Celery's main process decides about the task that its child is in."""
    child = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("child got it", flush=True))
print("up", flush=True)
sys.stdin.read()
"""
    parent = f"""
import signal, subprocess, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(print("parent got it", flush=True)))
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE)
while not stopped:
    time.sleep(0.05)
child.communicate()
"""
    stage.start("parent", parent)
    stage.wait_for("parent   | up")
    stage.runner.stop()
    shown = stage.out.getvalue()
    assert "parent got it" in shown
    assert "child got it" not in shown


def test_progress_bars_and_strange_bytes_are_lines(stage: Stage) -> None:
    stage.start(
        "bar",
        r"import sys; sys.stdout.buffer.write(b'10%\r20%\r\n\xff\xfe'); sys.stdout.flush(); sys.exit(5)",
    )
    assert stage.runner.wait() == 5
    assert "bar      | 10%\nbar      | 20%\nbar      | \ufffd\ufffd\n" in stage.out.getvalue()


def test_watched_process_is_not_stopped_but_its_end_is_noticed(stage: Stage) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.DEVNULL) as watched:
        stage.runner.watch("redis", watched)
        stage.start("healthy", SLEEP)
        stage.wait_for("healthy  | up")
        watched.kill()
        assert stage.runner.wait() == 137
    assert "redis was killed by SIGKILL" in stage.out.getvalue()


def test_nobody_reads_any_more() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as out:
        console = Console(out)
        console.stage("into the void")
        console.write("server", "into the void")
        with pytest.raises(BrokenPipeError):
            out.write("x\n")
        # What is left in the buffer can only fail again when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_killed_runner_leaves_nothing() -> None:
    program = (
        "import os, signal, sys\n"
        "from embedded.console import Console\n"
        "from embedded.process_runner import ProcessRunner, StopSignals\n"
        "runner = ProcessRunner(Console(), StopSignals(), grace_s=1)\n"
        f"runner.start('sleeper', [sys.executable, '-c', {SLEEP!r}], dict(os.environ))\n"
        "print('pid', runner._processes['sleeper'].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    ).stdout
    pid = int(output.split("pid ")[1].split()[0])
    wait_until_gone(pid)
