import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dragoman.cli import doctor
from tests.dragoman.cli.conftest import Run
from tests.dragoman.servers import Reply, ScriptedServer


@pytest.fixture
def found(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_url: str) -> "Found":
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAGOMAN_PORT", unused_url.rpartition(":")[2])
    return Found(run, monkeypatch)


class Found:
    """Findings by name, under settings of one's own."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = run
        self._monkeypatch = monkeypatch

    def __call__(self, **environment: str) -> tuple[int, dict[str, doctor.Finding]]:
        for name, value in environment.items():
            self._monkeypatch.setenv(name, value)
        ran = self._run("doctor", "--json")
        findings = [doctor.Finding(**f) for f in json.loads(ran.out)]
        return ran.code, {f.name: f for f in findings}


def test_this_machine_is_well(found: Found, tmp_path: Path) -> None:
    code, findings = found()
    assert code == 0, findings
    assert {
        "python",
        "packages",
        "device",
        "memory",
        "volume",
        "redis",
        "port",
        "base model",
    } <= set(findings)
    assert not list(tmp_path.iterdir()), "it makes nothing"


def test_what_is_wrong_is_told_with_what_to_do(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PROBE_TORCH", "import no_such_torch")
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, findings = found(
            DRAGOMAN_PORT=str(taken.getsockname()[1]),
            DRAGOMAN_REDIS_URL="redis://127.0.0.1:1",
            DRAGOMAN_BASE_MODEL="not a model: ?",
            DRAGOMAN_DATA_DIR=str(tmp_path / "file" / "data"),
        )
    assert code == 1
    failed = {name for name, finding in findings.items() if finding.level == "fail"}
    assert failed == {"torch", "volume", "redis", "port", "base model"}
    assert "no_such_torch" in findings["torch"].found
    assert "DRAGOMAN_PORT" in findings["port"].found
    assert findings["redis"].advice


def test_a_running_dragoman_holds_its_port(found: Found, service_url: str) -> None:
    _, findings = found(DRAGOMAN_PORT=service_url.rpartition(":")[2])
    assert findings["port"].level == "ok"
    assert "answers" in findings["port"].found


@pytest.mark.parametrize(
    ("host", "address"), [("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")]
)
def test_so_does_one_that_listens_elsewhere(found: Found, host: str, address: str) -> None:
    try:
        server = ScriptedServer(address)
    except OSError:
        pytest.skip("this machine has no IPv6")
    server.replies = [Reply(body={"status": "ok", "checks": {}})]
    with server:
        _, findings = found(DRAGOMAN_HOST=host, DRAGOMAN_PORT=str(server.port))
    assert findings["port"].level == "ok"
    assert findings["port"].found == f"a Dragoman answers at {server.url}"


def test_odd_settings_are_named(found: Found) -> None:
    code, findings = found(DRAGOMAN_PORT="many")
    assert code == 1
    assert "DRAGOMAN_PORT='many'" in findings["settings"].found


def test_people_get_lines(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("doctor")
    assert "✓ python: " in ran.out


def test_serve_becomes_the_service(tmp_path: Path) -> None:
    """As far as its first refusal, which shows that options arrive."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "dragoman.cli", "serve", "--port", port, "--data-dir", "d"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])},
            check=False,
        )
    assert result.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in result.stdout
