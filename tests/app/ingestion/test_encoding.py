import codecs
import io

import pytest

from app.ingestion import encoding
from app.ingestion.records import MAX_LINE_CHARS, UnreadableError
from core.datasets import Row
from core.errors import InvalidError
from tests.app.ingestion.uploads import Ingestion, faults, warnings


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
    assert "encoding=gb18030" in error.message


def test_a_nul_byte_is_refused_with_line_and_offset(ingestion: Ingestion) -> None:
    error = ingestion.refusal(b"prompt,completion\na,b\0\n")

    assert faults(error) == [(2, None, "nul")]
    assert "offset 21" in error.message


ROWS = [
    Row(prompt="左师公曰。", completion="The Duke’s “tutor” said: é"),
    Row(prompt="子", completion="ü"),
]
CSV = "".join(
    f"{a},{b}\n" for a, b in [("prompt", "completion"), *((r.prompt, r.completion) for r in ROWS)]
)


@pytest.mark.parametrize(
    ("codec", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
def test_a_byte_order_mark_tells_the_encoding(
    ingestion: Ingestion, codec: str, mark: bytes
) -> None:
    dataset = ingestion.take(mark + CSV.encode(codec))
    assert list(ingestion.store.rows(dataset.id)) == ROWS
    assert dataset.columns == ["prompt", "completion"]
    assert dataset.report.warnings == []


@pytest.mark.parametrize("name", ["gb18030", "GBK", "gb2312", "utf-16", "UTF-16LE", "utf8"])
def test_an_encoding_may_be_named(ingestion: Ingestion, name: str) -> None:
    text = CSV.replace("é", "e").replace("ü", "u")
    dataset = ingestion.take(text.encode(name).removeprefix(codecs.BOM_UTF16_LE), encoding=name)
    assert [row.prompt for row in ingestion.store.rows(dataset.id)] == [r.prompt for r in ROWS]
    assert dataset.report.warnings == []


@pytest.mark.parametrize(
    "name", ["klingon", "zip", "base64", "idna", "unicode_escape", "\0", "x" * 40]
)
def test_a_name_that_is_no_encoding_is_refused(ingestion: Ingestion, name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        ingestion.take(CSV, encoding=name)
    assert caught.value.code == "encoding_unknown"
    assert "gb18030" in caught.value.message
    assert ingestion.leftovers() == []


def test_a_mark_contradicts_a_name(ingestion: Ingestion) -> None:
    error = ingestion.refusal(codecs.BOM_UTF8 + CSV.encode(), encoding="gb18030")
    assert faults(error) == [(1, None, "encoding_contradicted")]
    assert ingestion.rows(codecs.BOM_UTF16_LE + CSV.encode("utf-16-le"), encoding="utf-16") == ROWS


def test_bytes_that_the_named_encoding_does_not_have_are_refused(ingestion: Ingestion) -> None:
    error = ingestion.refusal(b"prompt,completion\na,b\nc,\x81\n", encoding="windows-1252")
    assert faults(error) == [(3, None, "invalid_bytes")]
    assert "byte 0x81 at offset 24 is not cp1252" in error.message


def test_half_a_character_of_utf16_is_refused(ingestion: Ingestion) -> None:
    content = codecs.BOM_UTF16_LE + CSV.encode("utf-16-le") + b"a"
    error = ingestion.refusal(content)
    assert faults(error) == [(4, None, "invalid_bytes")]
    assert f"offset {len(content) - 1} " in error.message


def test_utf16_without_a_mark_is_refused_with_what_to_send(ingestion: Ingestion) -> None:
    error = ingestion.refusal("prompt,completion\na,b\n".encode("utf-16-le"))
    assert faults(error) == [(1, None, "nul")]
    assert "encoding=utf-16-le" in error.message


@pytest.mark.parametrize("filename", ["corpus.csv", "corpus.txt", "-"])
def test_utf16_without_a_mark_whatever_the_file_is_called(
    ingestion: Ingestion, filename: str
) -> None:
    assert ingestion.rows(CSV.encode("utf-16-le"), filename, encoding="utf-16-le") == ROWS


PAIRS = [
    ("The old road leads to the sea.", "La vieille route mène à la mer, où l’été a été très doux."),
    ("He was very tired after school.", "Il était très fatigué après l’école, déjà à midi."),
    ("Where did the boy go?", "Où est passé le garçon ? Il a mangé une crêpe à la gare."),
    ("I read this book as a child.", "J’ai lu ce livre étant élève, il y a des années."),
]
RUSSIAN = [
    "Старая дорога ведёт к морю.",
    "Он очень устал после школы.",
    "Куда ушёл мальчик?",
    "Я читал это в детстве.",
]
CHINESE = [
    "那条老路通向大海。",
    "放学以后他非常疲倦。",
    "那个男孩到哪里去了？",
    "我小时候读过这本书。",
]
JAPANESE = [
    "その古い道は海へ続いています。",
    "彼は学校の後とても疲れていました。",
    "少年はどこへ行きましたか。",
    "私は子供のころにこの本を読みました。",
]


@pytest.mark.parametrize(
    ("codec", "targets"),
    [
        ("gb18030", CHINESE),
        ("gbk", CHINESE),
        (
            "big5",
            [
                "那條老路通向大海。",
                "放學以後他非常疲倦。",
                "那個男孩到哪裡去了？",
                "我小時候讀過這本書。",
            ],
        ),
        ("cp932", JAPANESE),
        ("euc_jp", JAPANESE),
        ("cp1251", RUSSIAN),
        ("koi8_r", RUSSIAN),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_other_encodings_are_detected_and_told(
    ingestion: Ingestion, codec: str, targets: list[str], suffix: str
) -> None:
    rows = [Row(prompt=s, completion=t) for (s, _), t in zip(PAIRS, targets, strict=True)]
    if suffix == "csv":
        content = "prompt,completion\n" + "".join(f'"{r.prompt}","{r.completion}"\n' for r in rows)
    else:
        content = "".join(r.model_dump_json(exclude_defaults=True) + "\n" for r in rows)
    dataset = ingestion.take(content.encode(codec), f"a.{suffix}")
    assert list(ingestion.store.rows(dataset.id)) == rows
    [warning] = dataset.report.warnings
    assert warning.code == "encoding_detected"
    assert {"gbk": "gb18030"}.get(codec, codec) in warning.message


def test_western_encodings_are_told_apart_by_the_language(ingestion: Ingestion) -> None:
    content = "prompt,completion\n" + "".join(f'"{s}","{t}"\n' for s, t in PAIRS * 5)
    rows = ingestion.rows(content.encode("cp1252"))
    assert [(r.prompt, r.completion) for r in rows] == PAIRS


def test_in_doubt_a_file_is_refused_with_what_to_send(ingestion: Ingestion) -> None:
    error = ingestion.refusal(
        "prompt,completion\n\xe6q \xeaz \xf3k,\xb3x \xbfj \xb3w \xb9v \xeaq \xd0z\n".encode(
            "latin-1"
        )
    )
    assert faults(error) == [(2, None, "encoding_doubtful")]
    assert "send its encoding by name" in error.message


@pytest.mark.parametrize("num_broken", [1, 5, 40])
def test_utf8_with_broken_bytes_is_never_taken_for_something_else(
    ingestion: Ingestion, num_broken: int
) -> None:
    lines = [f"{i} {CHINESE[i % 4]},{JAPANESE[i % 4]}".encode() for i in range(200)]
    for i in range(num_broken):
        lines[i * 5] = lines[i * 5][:-1]  # the last character is cut
    content = b"prompt,completion\n" + b"\n".join(lines)
    error = ingestion.refusal(content, on_error="skip")
    assert faults(error) == [(2, None, "invalid_utf8")]


def test_a_sample_is_taken_from_the_whole_file(ingestion: Ingestion) -> None:
    head = "".join(f"plain {i},text {i}\n" for i in range(80_000))
    tail = "".join(f"{i} {CHINESE[i % 4]},{CHINESE[(i + 1) % 4]}\n" for i in range(20))
    dataset = ingestion.take(("prompt,completion\n" + head + tail).encode("gbk"))
    assert dataset.rows == 80_020
    assert "encoding_detected" in warnings(dataset)


def check(content: bytes, codec: str = "utf-8") -> None:
    encoding.check_encoding(io.BytesIO(content), encoding.Encoding(codec))


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7])
def test_characters_may_be_cut_by_the_border_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(encoding, "_CHUNK_BYTES", chunk_bytes)
    check("汉字\né😀\n".encode())
    check("汉字\né😀\n".encode("utf-16-le"), "utf-16-le")
    check("汉字\né😀\n".encode("gb18030"), "gb18030")

    for content, offset, line in [
        ("é\n汉".encode() + b"\xff", 6, 2),
        ("é\n汉".encode()[:-1] + b"\n", 3, 2),  # the third byte of a character is missing
        ("é\n\n汉".encode()[:-1], 4, 3),  # so it is at the end of the file
    ]:
        with pytest.raises(UnreadableError, match=f"offset {offset} ") as caught:
            check(content)
        assert caught.value.fault.line == line


@pytest.mark.parametrize("filename", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_an_endless_line_is_refused(ingestion: Ingestion, filename: str) -> None:
    start = {"a.jsonl": '{"prompt": "', "a.json": '[{"prompt": "'}.get(filename, "")
    error = ingestion.refusal(start + "x" * (MAX_LINE_CHARS + 100_000), filename)
    assert faults(error) == [(1, None, "line_too_long")]
