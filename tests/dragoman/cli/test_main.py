import json
import os
import pty
import subprocess
import sys

import pytest

import dragoman
from tests.dragoman.cli.conftest import Run
from tests.dragoman.servers import Reply, ScriptedServer, problem, translated

COMMANDS = [
    *(["translate"], ["train"], ["serve"], ["doctor"]),
    *(["jobs", c] for c in ("list", "show", "follow", "log", "cancel", "pause", "resume")),
    *(["suggestions", c] for c in ("add", "export")),
    *(
        ["adapters", c]
        for c in ("list", "show", "promote", "rollback", "traffic", "export", "import", "delete")
    ),
    *(["datasets", c] for c in ("list", "show", "upload", "preview", "export", "delete")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_tells_what_it_takes(run: Run, command: list[str]) -> None:
    ran = run(*command, "--help")
    assert ran.code == 0
    assert "--json" in ran.out or command == ["serve"]


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"dragoman {dragoman.__version__}\n", "")


@pytest.mark.parametrize(
    "wrong",
    [
        ["jobs", "show"],
        ["jobs", "list", "--no-such"],
        ["no-such"],
        ["translate", "x", "--temperature", "hot"],
        ["train", "/no/such/file.csv", "-a", "x"],
        ["train", "-a", "x"],
        ["train", "-a", "x", "--dataset", "ds-1", "--skip-errors"],
        ["adapters", "promote", "yoda"],
        ["adapters", "show", "yoda@x"],
        ["adapters", "traffic", "yoda", "half"],
        ["adapters", "delete", "yoda@1"],
        ["adapters", "traffic", "yoda", "1=nan"],
        ["jobs", "show", ""],
        ["jobs", "list", "--url", "localhost:8000"],
        ["jobs", "list", "--url", "http://[::1"],
        ["datasets", "delete", ".."],
        ["translate", "half of \udc80 a pair"],
        ["translate", "x", "--temperature", "nan"],
        ["translate", "x", "--key", "clé"],
        ["translate", "x", "--stream", "-o", "out.txt"],
        ["translate", "x", "--alternatives", "2", "-o", "out.txt"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_2(run: Run, wrong: list[str]) -> None:
    ran = run(*wrong)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("dragoman: ")
    assert ran.err.count("\n") == 1


def test_no_command_shows_the_help(run: Run) -> None:
    ran = run()
    assert ran.code == 2
    assert "translate" in ran.out + ran.err


def test_no_server_is_3(run: Run, unused_url: str) -> None:
    ran = run("adapters", "list", "--url", unused_url)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == f"dragoman: cannot reach {unused_url}: [Errno 111] Connection refused\n"


def test_another_server_is_3(run: Run, scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(body="<html>")]
    assert run("adapters", "list", "--url", scripted.url).code == 3


def test_refused_is_4(run: Run, scripted: ScriptedServer) -> None:
    scripted.replies = [problem(401, "unauthorized", "key 'k'\nis\x1b[31m not known")]
    ran = run("adapters", "list", "--url", scripted.url, "--key", "k")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err == "dragoman: key 'k' is[31m not known (401 unauthorized)\n"
    assert scripted.seen[0].headers["Authorization"] == "Bearer k"
    ran = run("adapters", "list", "--url", scripted.url, "--json")
    assert (ran.code, ran.out) == (4, "")
    assert json.loads(ran.err)["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_a_table_and_no_control_codes(
    scripted: ScriptedServer, no_color: bool
) -> None:
    adapter = {
        "name": "red",
        "source": "en",
        "target": "de",
        "current": 1,
        "versions": [1],
        "description": "a[bold]b\x1b[2Jc",
    }
    scripted.replies = [Reply(body=[adapter])]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    near, far = pty.openpty()
    command = [sys.executable, "-m", "dragoman.cli", "adapters", "list", "--url", scripted.url]
    with subprocess.Popen(command, stdout=far, stderr=far, env=environment) as process:
        os.close(far)
        shown = b""
        while True:
            try:
                shown += os.read(near, 65536)
            except OSError:
                break
        assert process.wait(60) == 0
    os.close(near)
    text = shown.decode()
    assert "description" in text
    assert "a[bold]b[2Jc" in text
    assert "\x1b[2J" not in text
    assert ("\x1b[3" in text) is False or not no_color


def test_a_reader_that_leaves_is_no_traceback(scripted: ScriptedServer) -> None:
    scripted.answer = lambda seen: translated("x" * 60_000)
    program = [sys.executable, "-m", "dragoman.cli", "translate", "--url", scripted.url]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"line\n" * 50)
        process.stdin.close()
        process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) != 0


def test_completion_is_offered() -> None:
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "dragoman.cli", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert "_DRAGOMAN_COMPLETE=complete_bash" in result.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["dragoman", "j"], {"jobs"}),
        (["dragoman", "jobs", "p"], {"pause"}),
        (["dragoman", "train", "--pri"], {"--priority"}),
        (["dragoman", "train", "--priority", "h"], {"high"}),
    ],
)
def test_words_are_completed(typed: list[str], offered: set[str]) -> None:
    environment = os.environ | {
        "_DRAGOMAN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    result = subprocess.run(
        [sys.executable, "-m", "dragoman.cli"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert set(result.stdout.split()) == offered


def test_a_pipe_gets_utf_8_whatever_the_locale(scripted: ScriptedServer) -> None:
    scripted.replies = [translated("王发怒了。")]
    command = [sys.executable, "-m", "dragoman.cli", "translate", "x", "--url", scripted.url]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == "王发怒了。\n"
