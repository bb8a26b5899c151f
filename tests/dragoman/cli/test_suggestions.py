import json
from pathlib import Path

import pytest

from tests.dragoman.cli.conftest import Run


def test_suggested_exported_and_uploaded(
    at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert at("suggestions", "add", "I am tall.", "Tall, I am.", "-a", "yoda") == (0, "kept\n", "")
    ran = at("suggestions", "export", "-a", "yoda")
    assert ran.out.startswith("yoda-suggestions.jsonl: ")
    assert "dragoman train yoda-suggestions.jsonl --adapter yoda" in ran.err
    dataset_id = at("datasets", "upload", "yoda-suggestions.jsonl").out.strip()
    ran = at("datasets", "export", dataset_id, "-o", "rows.jsonl", "--json")
    assert json.loads(ran.out) == {"dataset": dataset_id, "output": "rows.jsonl"}
    assert at("datasets", "upload", "rows.jsonl").out.strip() == dataset_id
    every = json.loads(at("suggestions", "export", "-o", "all.jsonl", "--json").out)
    assert every["count"] == len(Path("all.jsonl").read_text().splitlines()) > 0


def test_what_is_refused(at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert at("suggestions", "add", "a", "b", "-a", "nobody").code == 4
    assert at("suggestions", "add", "a", "b").code == 4
    assert at("suggestions", "add", "a").code == 2
    assert at("suggestions", "export", "-a", "nobody").code == 4
    assert at("datasets", "export", "nobody").code == 4
    ran = at("suggestions", "export", "-o", "no/such/file.jsonl")
    assert (ran.code, ran.err) == (1, "dragoman: no/such/file.jsonl: No such file or directory\n")
    assert list(tmp_path.iterdir()) == []
