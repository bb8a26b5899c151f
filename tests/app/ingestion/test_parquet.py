import io
import random
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.ingestion import parquet
from app.ingestion.records import UnsupportedFormatError
from core.datasets import Exchange, Row
from core.errors import InvalidError
from tests.app.ingestion.uploads import Ingestion, faults

ROWS = [Row(prompt="茶 is hot", completion="hot is 茶"), Row(prompt="b", completion="c")]


def write(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


PROMPTS = [row.prompt for row in ROWS]
COMPLETIONS = [row.completion for row in ROWS]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd"},
        {"use_dictionary": False},
        {"row_group_size": 1},
        {"version": "1.0"},
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_columns_of_texts(
    ingestion: Ingestion, kind: pa.DataType, options: dict[str, Any], name: str
) -> None:
    columns = {
        "id": [1, 2],
        "target": pa.array(COMPLETIONS, kind),
        "source": pa.array(PROMPTS, kind),
    }
    dataset = ingestion.take(write(columns, **options), name)
    assert dataset.format == "parquet"
    assert dataset.columns == ["id", "target", "source"]
    assert dataset.mapping == {"source": "source", "target": "target"}
    assert list(ingestion.store.rows(dataset.id)) == ROWS


@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list])
def test_lists_of_turns(ingestion: Ingestion, list_type: Any) -> None:
    turn = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    turns = [
        {"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True)
    ]
    content = write({"messages": pa.array([turns, turns[:2]], list_type(turn)), "n": [1, 2]})
    assert ingestion.rows(content, "chat.parquet") == [
        Row(prompt="a", completion="b", further=(Exchange(prompt="c", completion="d"),)),
        Row(prompt="a", completion="b"),
    ]


def test_faulty_rows_are_counted_from_one(ingestion: Ingestion) -> None:
    content = write({"prompt": ["a", None, "c", " "], "completion": ["b", "x", None, "y"]})
    error = ingestion.refusal(content, "a.parquet")
    assert faults(error) == [
        (2, "prompt", "empty"),
        (3, "completion", "empty"),
        (4, "prompt", "empty"),
    ]
    assert ingestion.rows(content, "a.parquet", on_error="skip") == [
        Row(prompt="a", completion="b")
    ]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([1.5]), "number"),
        (pa.array([b"x"]), "bytes"),
        (pa.array([["x"]]), "list"),
        (pa.array([{"x": "y"}]), "JSON object"),
        (pa.array([0], pa.timestamp("s")), "datetime"),
    ],
)
def test_other_types_are_faults(ingestion: Ingestion, values: pa.Array, kind: str) -> None:
    error = ingestion.refusal(write({"prompt": ["a"], "completion": values}), "a.parquet")
    assert faults(error) == [(1, "completion", "not_text")]
    assert f"is a {kind}; a text is wanted" in error.message


def test_a_text_that_is_not_utf8_is_a_fault(ingestion: Ingestion) -> None:
    broken = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe")
    )
    content = write({"prompt": broken, "completion": ["x", "y"]})
    error = ingestion.refusal(content, "a.parquet")
    assert faults(error) == [(2, None, "invalid_value")]


def test_what_cannot_be_mapped_is_refused(ingestion: Ingestion) -> None:
    content = write({"a": ["x"], "b": ["y"], "c": ["z"]})
    assert faults(ingestion.refusal(content, "a.parquet")) == [(1, None, "mapping_required")]
    error = ingestion.refusal(content, "a.parquet", mapping={"source": "a", "target": "d"})
    assert faults(error) == [(1, "d", "column_missing")]
    twice = pa.Table.from_arrays([pa.array(["x"])] * 2, ["a", "a"])
    buffer = io.BytesIO()
    pq.write_table(twice, buffer)
    assert faults(ingestion.refusal(buffer.getvalue(), "a.parquet")) == [
        (1, "a", "duplicate_column")
    ]


def test_garbage_is_refused(ingestion: Ingestion) -> None:
    good = write({"prompt": [f"p {i}" for i in range(500)], "completion": ["c"] * 500})
    draw = random.Random(5)
    contents = [
        b"",
        b"PAR1",
        b"PAR1" * 10,
        b"x" * 1000,
        good[:-100],
        good[: len(good) // 2] + good[-8:],
    ]
    for content in contents:
        error = ingestion.refusal(content, "a.parquet", on_error="skip")
        assert [code for *_, code in faults(error)] == ["parquet_syntax"]
    # A column's name that is not UTF-8.
    error = ingestion.refusal(good.replace(b"completion", b"complet\xffon"), "a.parquet")
    assert [code for *_, code in faults(error)] == ["parquet_syntax"]
    # What is left of a damaged file is either refused or read; nothing else may happen.
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(draw.randint(1, 20)):
            damaged[draw.randrange(len(good))] = draw.randrange(256)
        with suppress(InvalidError, UnsupportedFormatError):
            ingestion.take(bytes(damaged), "a.parquet", on_error="skip")


def test_a_text_that_is_repeated_lies_in_memory_once(ingestion: Ingestion) -> None:
    """2,000 rows of 200 kB each, 400 MB as they stand there, in a file of a few kB."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 100_000])
    content = write({"prompt": text, "completion": text}, compression="zstd")
    assert len(content) < 20_000
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    dataset = ingestion.take(content, "a.parquet")
    assert dataset.rows == 1
    assert dataset.report.duplicates == 1999
    assert pa.default_memory_pool().max_memory() - max(peak, before) < 50_000_000


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("_MAX_ROWS", "too_many_rows"),
        ("_MAX_CHUNK_VALUES", "row_group_too_large"),
        ("_MAX_CHUNK_BYTES", "row_group_too_large"),
    ],
)
def test_a_file_that_claims_to_be_huge_is_refused(
    ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch, limit: str, code: str
) -> None:
    monkeypatch.setattr(parquet, limit, 1)
    error = ingestion.refusal(write({"prompt": PROMPTS, "completion": COMPLETIONS}), "a.parquet")
    assert [what for *_, what in faults(error)] == [code]
    assert "at most 1" in error.message


def test_memory_does_not_grow_with_the_file(ingestion: Ingestion) -> None:
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdef ", k=2000)) for _ in range(5000)]
    content = write({"prompt": texts, "completion": texts[::-1]}, row_group_size=500)  # 20 MB
    before = pa.total_allocated_bytes()
    batches: list[int] = []

    def count(batch: list[str]) -> list[int]:
        batches.append(pa.total_allocated_bytes() - before)
        return [1] * len(batch)

    ingestion.take(content, "a.parquet", count_tokens=count)
    assert len(batches) > 5
    assert max(batches[5:]) - max(batches[:5]) < 2_000_000
