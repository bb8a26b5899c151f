import io
import json

import pytest

from app.ingestion import json_rows
from app.ingestion.formats import Format
from app.ingestion.records import Record, UnreadableError
from core.datasets import Row, RowError
from tests.app.ingestion.uploads import Ingestion, faults

PAIR = '{"prompt": "a", "completion": "b"}'
OTHER = '{"prompt": "c", "completion": "d"}'
ROWS = [Row(prompt="a", completion="b"), Row(prompt="c", completion="d")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("filename", ["a.jsonl", "a.ndjson", "a.json", "a"])
def test_one_object_a_line(ingestion: Ingestion, filename: str, end: str) -> None:
    content = f"{PAIR}{end}{end}{OTHER}"
    assert ingestion.rows(content, filename) == ROWS
    assert ingestion.store.all()[0].format == "jsonl"


@pytest.mark.parametrize("filename", ["a.jsonl", "a.json", "a"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects(ingestion: Ingestion, filename: str, indent: int | None) -> None:
    content = json.dumps([json.loads(PAIR), json.loads(OTHER)], indent=indent)
    assert ingestion.rows(content + "\n", filename) == ROWS
    assert ingestion.store.all()[0].format == "json"


@pytest.mark.parametrize("content", [PAIR, json.dumps({"rows": [1]}, indent=1), '"text"', "12"])
def test_json_that_is_no_list_is_refused(ingestion: Ingestion, content: str) -> None:
    error = ingestion.refusal(content, "a.json")
    assert faults(error) == [(1, None, "not_a_list")]
    assert "JSON (a list of objects)" in error.message


def test_faulty_lines_of_jsonl_are_named(ingestion: Ingestion) -> None:
    lines = [
        PAIR,
        "{broken",
        "[1, 2]",
        '"text"',
        '{"prompt": "a"}',
        '{"prompt": null, "completion": "x"}',
        '{"prompt": 5, "completion": "x"}',
        '{"prompt": "x", "completion": ["y"]}',
        '{"prompt": "x", "completion": true}',
        '{"prompt": "x", "completion": {}}',
        '{"prompt": "x\\u0000", "completion": "y"}',
        '{"prompt": "\\ud800", "completion": "y"}',
        json.dumps({"prompt": "x" * 200_000, "completion": "y"}),
        "[" * 100_000,
        '{"prompt": ' + "9" * 5000 + "}",
    ]
    content = "\n".join(lines)

    assert faults(ingestion.refusal(content, "a.jsonl")) == [
        (2, None, "json_syntax"),
        (3, None, "not_an_object"),
        (4, None, "not_an_object"),
        (5, "completion", "missing_columns"),
        (6, "prompt", "empty"),
        (7, "prompt", "not_text"),
        (8, "completion", "not_text"),
        (9, "completion", "not_text"),
        (10, "completion", "not_text"),
        (11, "prompt", "nul"),
        (12, "prompt", "invalid_unicode"),
        (13, "prompt", "field_too_long"),
        (14, None, "json_syntax"),
        (15, None, "json_syntax"),
    ]
    assert ingestion.rows(content, "a.jsonl", on_error="skip") == ROWS[:1]


def test_only_faulty_lines_are_all_named(ingestion: Ingestion) -> None:
    error = ingestion.refusal("{x\n[1]\n{}\n", "a.jsonl", on_error="skip")
    assert [code for _, _, code in faults(error)] == [
        "json_syntax",
        "not_an_object",
        "missing_columns",
    ]


def test_rows_of_a_list_that_are_no_objects_are_named(ingestion: Ingestion) -> None:
    content = f"[\n{PAIR},\n7,\n[[]],\n{OTHER}\n]"
    error = ingestion.refusal(content, "a.json")
    assert faults(error) == [(3, None, "not_an_object"), (4, None, "not_an_object")]
    assert ingestion.rows(content, "a.json", on_error="skip") == ROWS


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"[\n{PAIR},\n{OTHER}\n", 4),  # not closed
        (f"[\n{PAIR}\n{OTHER}\n]", 3),  # no comma
        (f"[\n{PAIR},\n]", 3),  # a comma too many
        (f"[\n{PAIR}\n]\n{OTHER}", 4),  # something behind it
        ("[\n" + PAIR + ',\n{"prompt": "tab\t"}]', 3),
        ("[\n" + PAIR + ',\n{"prompt": "cut', 3),
        ("[\n" + "[" * 100_000, 2),
        ("[\n" + PAIR + ",\n{'prompt': 'x'}]", 3),
    ],
)
def test_a_broken_list_is_refused_at_its_line(
    ingestion: Ingestion, content: str, line: int
) -> None:
    error = ingestion.refusal(content, "a.json", on_error="skip")
    assert faults(error) == [(line, None, "json_syntax")]


@pytest.mark.parametrize("chunk_chars", [1, 2, 3, 5, 8, 64])
def test_elements_may_be_cut_by_the_border_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk_chars: int
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK_CHARS", chunk_chars)
    rows = [
        {"prompt": 'é "x" \\ \n', "completion": "😀" * 30, "n": -12.5e10},
        {"prompt": "p", "completion": None, "n": [True, False, {}]},
    ]
    for ensure_ascii in (True, False):
        text = json.dumps(rows, indent=1, ensure_ascii=ensure_ascii)
        table = json_rows.read_json(io.StringIO(text), Format.JSON)
        assert [r.values for r in table.read([]) if isinstance(r, Record)] == rows
        assert table.columns == ["prompt", "completion", "n"]

    table = json_rows.read_json(io.StringIO("[123456, -1.5e3, true, null]"), Format.JSON)
    assert all(isinstance(r, RowError) for r in table.read([]))

    with pytest.raises(UnreadableError):
        json_rows.read_json(io.StringIO('[{"a": 1}, {"b": tru}]'), Format.JSON)


def test_columns_are_those_of_the_first_rows(ingestion: Ingestion) -> None:
    content = f'{{"n": 1}}\n{PAIR}\n'
    dataset = ingestion.take(content, "a.jsonl", on_error="skip")
    assert dataset.columns == ["n", "prompt", "completion"]
    assert dataset.rows == 1


def test_odd_keys_are_no_columns(ingestion: Ingestion) -> None:
    content = json.dumps({"\ud800": 1, "": 2, "k" * 5000: 3, "left": "a", "right": "b"})
    dataset = ingestion.take(content, "a.jsonl")
    assert dataset.columns == ["left", "right"]
