import asyncio
import json
from pathlib import Path

import pytest

import dragoman
from tests.dragoman.servers import Reply, ScriptedServer, Seen, problem, translated


def shout(seen: Seen) -> Reply:
    q = json.loads(seen.body)["q"]
    return problem(422, "prompt_invalid") if "bad" in q else translated(q.upper())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\u2028half\nthree".encode())
    return path


def asked(scripted: ScriptedServer) -> list[str]:
    return [json.loads(seen.body)["q"] for seen in scripted.seen]


def test_lines_in_lines_out(scripted: ScriptedServer, source: Path, tmp_path: Path) -> None:
    scripted.answer = shout
    with dragoman.Client(scripted.url) as client:
        report = client.translate_file(source, tmp_path / "out.txt", adapter="a")
    assert (tmp_path / "out.txt").read_text() == "ONE\n\nTWO HALF\nTHREE\n"
    assert (report.lines, report.failed, report.resumed) == (4, [], 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "out.txt"]


def test_json_lines_have_both_sides(scripted: ScriptedServer, source: Path, tmp_path: Path) -> None:
    scripted.answer = shout
    with dragoman.Client(scripted.url) as client:
        client.translate_file(source, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().split("\n")[:-1]]
    assert [row["source"] for row in rows] == ["one", "", "two\u2028half", "three"]
    assert [row["translation"] for row in rows] == ["ONE", "", "TWO\u2028HALF", "THREE"]
    assert rows[0]["adapter"] == "a@1"


def test_an_interrupted_run_goes_on(scripted: ScriptedServer, tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"t{i}\n" for i in range(20)))
    scripted.answer = shout

    def stop(line: dragoman.Line) -> None:
        if line.number == 7:
            raise KeyboardInterrupt

    with dragoman.Client(scripted.url) as client:
        with pytest.raises(KeyboardInterrupt):
            client.translate_file(source, output, concurrency=2, on_line=stop, adapter="a")
        assert not output.exists()
        notes = tmp_path / "out.txt.partial"
        notes.write_bytes(notes.read_bytes()[:-9])  # killed in the middle of a line
        scripted.seen.clear()
        report = client.translate_file(source, output, concurrency=2, adapter="a")
    assert output.read_text() == "".join(f"T{i}\n" for i in range(20))
    assert (report.resumed, report.translated) == (6, 14)
    assert set(asked(scripted)) == {f"t{i}" for i in range(6, 20)}


def test_failed_lines_are_empty_and_tried_again(scripted: ScriptedServer, tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a\nbad\nb\n")
    scripted.answer = shout
    with dragoman.Client(scripted.url) as client:
        report = client.translate_file(source, output)
        assert [(line.number, line.source) for line in report.failed] == [(2, "bad")]
        assert output.read_text() == "A\n\nB\n"
        scripted.seen.clear()
        scripted.answer = lambda seen: translated("mended")
        report = client.translate_file(source, output)
    assert asked(scripted) == ["bad"]
    assert output.read_text() == "A\nmended\nB\n"
    assert not report.failed
    assert not (tmp_path / "out.txt.partial").exists()


def test_changed_lines_are_translated_anew(scripted: ScriptedServer, tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a\nbad\n")
    scripted.answer = shout
    with dragoman.Client(scripted.url) as client:
        client.translate_file(source, output)
        source.write_text("c\nd\n")
        client.translate_file(source, output)
    assert output.read_text() == "C\nD\n"


def test_notes_of_other_options_are_not_taken(scripted: ScriptedServer, tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a\nbad\n")
    scripted.answer = shout
    with dragoman.Client(scripted.url) as client:
        client.translate_file(source, output, adapter="a@1")
        with pytest.raises(dragoman.DragomanError, match=r"a@1.*a@2"):
            client.translate_file(source, output, adapter="a@2")
        (tmp_path / "out.txt.partial").write_text("something else\n")
        with pytest.raises(dragoman.DragomanError, match="remove it"):
            client.translate_file(source, output, adapter="a@1")


def test_what_cannot_be_read_is_named(scripted: ScriptedServer, tmp_path: Path) -> None:
    scripted.answer = shout
    (tmp_path / "in.txt").write_bytes(b"fine\nnot \xff fine\n")
    with dragoman.Client(scripted.url) as client:
        with pytest.raises(dragoman.DragomanError, match="line 2, byte 4 is 0xff"):
            client.translate_file(tmp_path / "in.txt", tmp_path / "out.txt")
        with pytest.raises(FileNotFoundError):
            client.translate_file(tmp_path / "nothing", tmp_path / "new.txt")
    assert not (tmp_path / "new.txt.partial").exists()


def test_the_async_client_does_the_same(
    scripted: ScriptedServer, source: Path, tmp_path: Path
) -> None:
    scripted.answer = shout

    async def work() -> dragoman.FileReport:
        async with dragoman.AsyncClient(scripted.url) as client:
            return await client.translate_file(source, tmp_path / "out.txt", source="en")

    assert asyncio.run(work()).translated == 4
    assert (tmp_path / "out.txt").read_text() == "ONE\n\nTWO HALF\nTHREE\n"
    assert json.loads(scripted.seen[0].body)["source"] == "en"


def test_the_input_is_never_the_output(
    scripted: ScriptedServer, source: Path, tmp_path: Path
) -> None:
    before = source.read_bytes()
    (tmp_path / "link.txt").symlink_to(source)
    with dragoman.Client(scripted.url) as client:
        for output in (source, tmp_path / "link.txt"):
            with pytest.raises(dragoman.DragomanError, match="is the input"):
                client.translate_file(source, output)
    assert source.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    assert scripted.seen == []
