import json
from pathlib import Path

from tests.dragoman.cli.conftest import Run


def test_what_there_is(at: Run) -> None:
    listed = at("adapters", "list")
    assert "yoda\ten\ten-x-yoda\t1\t1\t" in listed.out
    assert {a["name"] for a in json.loads(at("adapters", "list", "--json").out)} >= {"yoda"}
    assert "languages:  en -> en-x-yoda" in at("adapters", "show", "yoda").out
    assert (
        "on 62 held-out rows" in at("adapters", "show", "yoda@1").out
        or "base model\t23.9" in at("adapters", "show", "yoda@1").out
    )
    assert at("adapters", "show", "nobody").code == 4


def test_out_in_up_and_down(at: Run, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    ran = at("adapters", "export", "yoda", "-o", str(archive))
    assert ran.out.startswith(f"{archive}: yoda@1")
    assert (
        at("adapters", "import", str(archive), "-a", "cli-copy").out == "cli-copy@1, now current\n"
    )
    assert at("adapters", "import", str(archive), "-a", "cli-copy").out == "cli-copy@2\n"
    assert at("adapters", "promote", "cli-copy@2").out == "cli-copy is cli-copy@2 now\n"
    assert at("adapters", "rollback", "cli-copy").out == "cli-copy is cli-copy@1 now\n"
    assert at("adapters", "rollback", "cli-copy").code == 1
    assert (
        "traffic:    1: 99.5%, 2: 0.5%"
        in at("adapters", "traffic", "cli-copy", "1=0.995", "2=0.005").out
    )
    assert "traffic" not in at("adapters", "traffic", "cli-copy").out
    assert at("adapters", "delete", "cli-copy@1", "--yes").code == 4
    assert at("adapters", "delete", "cli-copy@2", "--yes").out == "cli-copy@2 deleted\n"
    ran = at("adapters", "export", "cli-copy@2", "-o", str(tmp_path / "gone.zip"))
    assert ran.code == 4
    assert not (tmp_path / "gone.zip").exists()
