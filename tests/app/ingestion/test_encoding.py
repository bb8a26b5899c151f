import io

import pytest

from app.ingestion import encoding
from app.ingestion.records import MAX_LINE_CHARS, UnreadableError
from tests.app.ingestion.uploads import Ingestion, faults


def test_a_byte_order_mark_is_no_part_of_the_first_column(ingestion: Ingestion) -> None:
    dataset = ingestion.take(b"\xef\xbb\xbfprompt,completion\na,b\n")
    assert dataset.columns == ["prompt", "completion"]


@pytest.mark.parametrize("filename", ["a.jsonl", "a.json", "a"])
def test_a_byte_order_mark_is_no_part_of_json(ingestion: Ingestion, filename: str) -> None:
    line = b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}'
    assert len(ingestion.rows(line, filename)) == 2


def test_invalid_utf8_is_refused_with_line_and_offset(ingestion: Ingestion) -> None:
    error = ingestion.refusal(b"prompt,completion\na,b\ncaf\xe9,d\n", on_error="skip")

    assert faults(error) == [(3, None, "invalid_utf8")]
    assert "byte 0xe9 at offset 25" in error.message
    assert "accepted is UTF-8" in error.message


def test_a_nul_byte_is_refused_with_line_and_offset(ingestion: Ingestion) -> None:
    error = ingestion.refusal(b"prompt,completion\na,b\0\n")

    assert faults(error) == [(2, None, "nul")]
    assert "offset 21" in error.message


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(ingestion: Ingestion, codec: str) -> None:
    mark = "\ufeff" if codec == "utf-16-be" else ""
    error = ingestion.refusal(f"{mark}prompt,completion\na,b\n".encode(codec))
    assert codec[:6].upper() in error.message


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7])
def test_characters_may_be_cut_by_the_border_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(encoding, "_CHUNK_BYTES", chunk_bytes)
    encoding.check_encoding(io.BytesIO("汉字\né😀\n".encode()))

    for content, offset, line in [
        ("é\n汉".encode() + b"\xff", 6, 2),
        ("é\n汉".encode()[:-1] + b"\n", 3, 2),  # the third byte of a character is missing
        ("é\n\n汉".encode()[:-1], 4, 3),  # so it is at the end of the file
    ]:
        with pytest.raises(UnreadableError, match=f"offset {offset} ") as caught:
            encoding.check_encoding(io.BytesIO(content))
        assert caught.value.fault.line == line


@pytest.mark.parametrize("filename", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_an_endless_line_is_refused(ingestion: Ingestion, filename: str) -> None:
    start = {"a.jsonl": '{"prompt": "', "a.json": '[{"prompt": "'}.get(filename, "")
    error = ingestion.refusal(start + "x" * (MAX_LINE_CHARS + 100_000), filename)
    assert faults(error) == [(1, None, "line_too_long")]
