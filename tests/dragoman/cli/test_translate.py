import json
from pathlib import Path

from tests.dragoman.cli.conftest import Run
from tests.dragoman.servers import Reply, ScriptedServer, Seen, problem, translated

TEXT = "I am tall."


def shout(seen: Seen) -> Reply:
    q = json.loads(seen.body)["q"]
    return problem(413, "text_too_long", "too long") if "bad" in q else translated(q.upper())


def test_a_text(at: Run) -> None:
    plain = at("translate", TEXT, "--adapter", "yoda")
    assert plain.code == 0
    assert plain.err == ""
    shown = json.loads(at("translate", TEXT, "-a", "yoda@1", "--json").out)
    assert shown["adapter"] == "yoda@1"
    assert plain.out == f"{shown['translatedText']}\n"
    streamed = at("translate", TEXT, "-a", "yoda", "--stream")
    assert streamed == plain
    pieces = [
        json.loads(line)
        for line in at("translate", TEXT, "-a", "yoda", "--stream", "--json").out.splitlines()
    ]
    assert "".join(p["text"] for p in pieces[:-1]).strip() == shown["translatedText"]
    assert pieces[-1] == shown


def test_a_language_pair(at: Run) -> None:
    ran = at("translate", "王怒，遂去。", "-s", "lzh", "-t", "zh")
    assert ran.code == 0
    assert ran.out.strip()


def test_an_unknown_adapter(at: Run) -> None:
    ran = at("translate", TEXT, "-a", "nobody")
    assert ran.code == 4
    assert "yoda" in ran.err


def test_options_arrive(run: Run, scripted: ScriptedServer) -> None:
    scripted.replies = [translated("cut")]
    options = ["--temperature", "0.5", "--top-p", "0.9", "--top-k", "5", "--seed", "7"]
    more = ["--max-new-tokens", "3", "--alternatives", "2", "-s", "auto", "-t", "de"]
    run("translate", "x", *options, *more, "--url", scripted.url)
    assert json.loads(scripted.seen[0].body) == {
        "q": "x",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 7,
        "max_new_tokens": 3,
        "alternatives": 2,
        "source": "auto",
        "target": "de",
    }


def test_lines_of_a_pipe(run: Run, scripted: ScriptedServer) -> None:
    scripted.answer = shout
    ran = run("translate", "--url", scripted.url, stdin="a\n\né\n".encode())
    assert ran == (0, "A\n\nÉ\n", "")
    ran = run("translate", "--url", scripted.url, "--json", stdin=b"a\nbad\n")
    assert ran.code == 1
    good, bad = map(json.loads, ran.out.splitlines())
    assert (good["translation"], bad["error"]["code"]) == ("A", "text_too_long")
    ran = run("translate", "--url", scripted.url, stdin=b"bad\nb\n")
    assert (ran.code, ran.out) == (1, "\nB\n")
    assert "line 1: too long" in ran.err


def test_a_file(run: Run, scripted: ScriptedServer, tmp_path: Path) -> None:
    scripted.answer = shout
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a\nbad\nb\n")
    files = ["-i", str(source), "-o", str(output), "--url", scripted.url]
    ran = run("translate", *files)
    assert ran.code == 1
    assert output.read_text() == "A\n\nB\n"
    assert "line 2" in ran.err
    scripted.answer = lambda seen: translated("mended")
    ran = run("translate", *files, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["resumed"] == 2
    assert output.read_text() == "A\nmended\nB\n"
    assert run("translate", "-i", str(source), "--url", scripted.url).out == "mended\n" * 3


def test_a_page(run: Run, scripted: ScriptedServer, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>a</p>\n<p>b</p>\n")
    scripted.answer = shout
    ran = run("translate", "--format", "html", "-i", str(page), "--url", scripted.url)
    assert ran.out == "<P>A</P>\n<P>B</P>\n"
    assert len(scripted.seen) == 1


def test_what_does_not_go_together(run: Run, scripted: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("a\n")
    for arguments in (
        ["x", "-i", str(path)],
        ["--stream", "-i", str(path)],
        ["-o", str(tmp_path / "out.txt")],
    ):
        assert run("translate", *arguments, "--url", scripted.url).code == 2
    path.write_bytes(b"\xff\n")
    ran = run("translate", "-i", str(path), "--url", scripted.url)
    assert ran.code == 1
    assert "is not UTF-8: line 1" in ran.err


def test_alternatives_are_shown_or_refused(
    run: Run, scripted: ScriptedServer, tmp_path: Path
) -> None:
    scripted.replies = [translated("first")]
    scripted.replies[0].body["alternatives"] = ["second", "third"]
    many = ["--alternatives", "2", "--url", scripted.url]
    assert run("translate", "x", *many).out == "first\nsecond\nthird\n"
    assert run("translate", *many, stdin=b"x\n").code == 2
    for arguments, stdin in ((["--json"], b"x\n"), (["x", "-o", str(tmp_path / "o.jsonl")], b"")):
        ran = run("translate", *arguments, *many, stdin=stdin)
        assert ran.code == 0
        line = ran.out or (tmp_path / "o.jsonl").read_text()
        assert json.loads(line)["alternatives"] == ["second", "third"]
    events = 'event: token\ndata: {"index": 0, "text": "first"}\n\nevent: done\ndata: '
    body = events + json.dumps(scripted.replies[0].body) + "\n\n"
    scripted.replies = [Reply(body=body, headers={"content-type": "text/event-stream"})]
    assert run("translate", "x", "--stream", *many).out == "first\nsecond\nthird\n"


def test_json_comes_also_where_a_file_is_written(
    run: Run, scripted: ScriptedServer, tmp_path: Path
) -> None:
    scripted.replies = [translated("fine")]
    output = tmp_path / "out.txt"
    ran = run("translate", "x", "-o", str(output), "--json", "--url", scripted.url)
    assert json.loads(ran.out)["translatedText"] == "fine"
    assert output.read_text() == "fine\n"
