import json
from pathlib import Path

from tests.dragoman.cli.conftest import Run


def test_a_dataset_comes_and_goes(at: Run, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("left,right\nI am tall.,Tall I am.\nYou are old.,Old you are.\nbroken,\n")
    columns = ["--column", "source=left", "--column", "target=right"]
    refused = at("datasets", "upload", str(path), *columns)
    assert refused.code == 4
    assert "line 4" in refused.err
    ran = at("datasets", "upload", str(path), *columns, "--skip-errors", "--name", "cli pairs")
    dataset_id = ran.out.strip()
    assert "2 pairs, csv (source: left, target: right)" in ran.err
    assert f"{dataset_id}\tcli pairs\tcsv\t2\t" in at("datasets", "list").out
    shown = at("datasets", "show", dataset_id)
    assert "dropped:    1" in shown.out
    assert "Tall I am." in shown.out
    assert json.loads(at("datasets", "show", dataset_id, "--json").out)["rows"] == 2
    rows = [
        line.split("\t")
        for line in at("datasets", "preview", dataset_id, "-n", "1").out.splitlines()
    ]
    assert {row[1] for row in rows} == {"read", "trained"}
    assert any("Tall I am." in row[3] for row in rows if row[1] == "trained")
    assert at("datasets", "delete", dataset_id).out == f"{dataset_id} deleted\n"
    assert at("datasets", "show", dataset_id).code == 4


def test_conversations_are_not_called_pairs(at: Run, tmp_path: Path) -> None:
    path = tmp_path / "talks.json"
    turns = [("human", "I am tall."), ("gpt", "Tall, I am.")] * 2
    talk = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    path.write_text(json.dumps([talk]))
    ran = at("datasets", "upload", str(path))
    assert "talks.json: 1 conversation, json (messages: conversations)" in ran.err
    dataset_id = ran.out.strip()
    assert "rows:       1 conversation\n" in at("datasets", "show", dataset_id).out


def test_odd_columns(at: Run, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("a,b\nx,y\n")
    assert at("datasets", "upload", str(path), "--column", "left=a").code == 2
