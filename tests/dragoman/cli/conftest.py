"""The command in this process, as a pipe sees it."""

import io
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from dragoman.cli.main import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("translate", "text", stdin=…)` -> exit code, stdout, stderr."""

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["dragoman", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main()
        captured = capfd.readouterr()
        return Ran(int(code), captured.out, captured.err)

    return run


@pytest.fixture
def at(run: Run, service_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run`, with the real service in DRAGOMAN_URL."""
    monkeypatch.setenv("DRAGOMAN_URL", service_url)
    return run
