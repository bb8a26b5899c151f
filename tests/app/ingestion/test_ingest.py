import hashlib
import io

import pytest

from app.ingestion.ingest import Upload, ingest
from app.ingestion.records import UnsupportedFormatError
from core.datasets import ROWS_FILE, Row, RowWarning
from core.errors import InvalidError
from core.volume import Volume
from tests.app.ingestion.uploads import Ingestion, faults, warnings

GOOD = 'prompt,completion\nThe tea is hot.,"Hot, the tea is."\nI am late.,"Late, I am."\n'


def test_a_good_file_becomes_a_dataset(ingestion: Ingestion) -> None:
    dataset = ingestion.take(GOOD, "tea.csv")

    assert dataset.name == "tea"
    assert dataset.format == "csv"
    assert dataset.rows == 2
    assert dataset.columns == ["prompt", "completion"]
    assert dataset.mapping == {"source": "prompt", "target": "completion"}
    assert dataset.preview[0] == Row(prompt="The tea is hot.", completion="Hot, the tea is.")
    assert dataset.report.errors == []
    assert dataset.report.warnings == []
    assert list(ingestion.store.rows(dataset.id)) == dataset.preview
    assert ingestion.store.get(dataset.id) == dataset


def test_the_id_and_the_hash_are_of_the_normalised_rows(ingestion: Ingestion) -> None:
    dataset = ingestion.take(GOOD)

    rows = (
        '{"prompt":"The tea is hot.","completion":"Hot, the tea is."}\n'
        '{"prompt":"I am late.","completion":"Late, I am."}\n'
    )
    assert hashlib.sha256(rows.encode()).hexdigest() == dataset.sha256
    assert dataset.id == f"ds-{dataset.sha256[:16]}"


def test_the_same_rows_are_one_dataset_whatever_file_they_come_in(ingestion: Ingestion) -> None:
    first = ingestion.take(GOOD, "tea.csv")
    again = ingestion.take(GOOD, "tea.csv")
    jsonl = "".join(row.model_dump_json() + "\n" for row in first.preview)
    other_file = ingestion.take(jsonl, "other.jsonl")

    assert again == first
    assert other_file.id == first.id
    assert ingestion.store.all() == [first]
    assert [p.name for p in ingestion.volume.datasets.iterdir()] == [first.id]


def test_the_answer_reports_on_this_upload_even_if_the_dataset_is_there(
    ingestion: Ingestion,
) -> None:
    ingestion.take(GOOD)
    again = ingestion.take(GOOD + "No target here.,\n", on_error="skip")

    assert again.report.unusable == 1
    assert ingestion.store.get(again.id).report.unusable == 0


@pytest.mark.parametrize(
    ("name", "filename", "expected"),
    [
        ("  Tea time ", "x.csv", "Tea time"),
        (None, "dir/tea.time.csv", "tea.time"),
        ("  ", "tea.csv", "tea"),
        ("n" * 300, "tea.csv", "n" * 199 + "…"),
        (None, "\ud800.csv", "?"),
    ],
)
def test_a_dataset_is_named_by_its_sender_or_its_file(
    ingestion: Ingestion, name: str | None, filename: str, expected: str
) -> None:
    assert ingestion.take(GOOD, filename, name=name).name == expected


@pytest.mark.parametrize("name", ["corpus.csv", "corpus.tsv", "corpus.jsonl", "corpus.json"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n \r\n\n"])
def test_an_empty_file_is_refused(ingestion: Ingestion, name: str, content: bytes) -> None:
    ingestion.refusal(content, name)


@pytest.mark.parametrize(
    ("content", "filename"),
    [("prompt,completion\n", "a.csv"), ("prompt\tcompletion", "a.tsv"), ("[]", "a.json")],
)
def test_a_file_without_rows_is_refused(ingestion: Ingestion, content: str, filename: str) -> None:
    error = ingestion.refusal(content, filename)
    assert "there are no rows" in error.message
    assert faults(error) == [(1, None, "no_rows")]


def test_every_faulty_line_is_reported_and_the_first_is_named(ingestion: Ingestion) -> None:
    error = ingestion.refusal(GOOD + "only source,\n,only target\na,b,c\n", "tea.csv")

    assert error.status_code == 422
    assert faults(error) == [
        (4, "completion", "empty"),
        (5, "prompt", "empty"),
        (6, None, "extra_columns"),
    ]
    assert error.message == (
        "'tea.csv', line 4, column 'completion': is empty; 2 more lines are faulty, see report; "
        "on_error=skip drops such rows"
    )
    assert error.extra["report"]["unusable"] == 3
    assert error.extra["report"]["empty"] == 2


def test_skip_drops_and_counts_faulty_rows(ingestion: Ingestion) -> None:
    dataset = ingestion.take(GOOD + "only source,\n,only target\na,b,c\n", on_error="skip")

    assert dataset.rows == 2
    assert dataset.report.unusable == 3
    assert dataset.report.empty == 2
    assert [e.line for e in dataset.report.errors] == [4, 5, 6]


def test_skip_does_not_accept_a_file_of_which_nothing_is_left(ingestion: Ingestion) -> None:
    error = ingestion.refusal("prompt,completion\na,\n,b\n", on_error="skip")
    assert len(faults(error)) == 2
    assert "on_error=skip" not in error.message


def test_the_first_thousand_errors_are_listed_and_all_are_counted(ingestion: Ingestion) -> None:
    error = ingestion.refusal(GOOD + "x,\n" * 1500)

    assert len(faults(error)) == 1000
    assert error.extra["report"]["unusable"] == 1500
    assert error.extra["report"]["empty"] == 1500
    assert "1,499 more lines" in error.message


def test_exact_duplicates_are_dropped_and_counted(ingestion: Ingestion) -> None:
    dataset = ingestion.take("prompt,completion\na,b\nc,d\n a ,b\na,b\n")

    assert dataset.rows == 2
    assert dataset.report.duplicates == 2
    assert dataset.report.warnings == [
        RowWarning(
            code="duplicates",
            message="repeat an earlier row, and were dropped",
            count=2,
            lines=[4, 5],
        )
    ]


def test_one_source_with_two_targets_is_a_warning(ingestion: Ingestion) -> None:
    dataset = ingestion.take("prompt,completion\na,b\nc,d\na,e\n")

    assert dataset.rows == 3
    assert warnings(dataset) == {"contradictions": [4]}


def test_untranslated_copies_are_a_warning(ingestion: Ingestion) -> None:
    lines = "".join(f"same {i},same {i}\n" for i in range(12))
    dataset = ingestion.take("prompt,completion\n" + lines)

    assert dataset.rows == 12
    assert warnings(dataset) == {"untranslated": list(range(2, 12))}
    assert dataset.report.warnings[0].count == 12


def test_tokens_are_those_of_both_sides(ingestion: Ingestion) -> None:
    lines = "".join(f"s{i},{'t ' * i}\n" for i in range(1, 101))
    dataset = ingestion.take("prompt,completion\n" + lines, max_tokens=99)

    tokens = dataset.report.tokens
    assert tokens is not None
    assert tokens.model_dump() == {"min": 2, "median": 51, "p95": 96, "max": 101, "total": 5150}
    assert dataset.report.too_long == 2
    assert warnings(dataset) == {"too_long": [100, 101]}
    assert "more than 99 tokens" in dataset.report.warnings[0].message


def test_white_space_around_a_text_goes_and_that_within_stays(ingestion: Ingestion) -> None:
    rows = ingestion.rows('prompt,completion\r\n"  one\r\n  two ",\tb \r\n')
    assert rows == [Row(prompt="one\n  two", completion="b")]


def test_a_long_row_is_clipped_in_the_preview_only(ingestion: Ingestion) -> None:
    dataset = ingestion.take(f"prompt,completion\n{'a' * 5000},b\n")

    assert len(dataset.preview[0].prompt) == 2000
    assert [len(r.prompt) for r in ingestion.store.rows(dataset.id)] == [5000]


def test_the_preview_is_the_first_five_rows(ingestion: Ingestion) -> None:
    lines = "".join(f"s{i},t{i}\n" for i in range(2000))
    dataset = ingestion.take("prompt,completion\n" + lines)

    assert [row.prompt for row in dataset.preview] == ["s0", "s1", "s2", "s3", "s4"]
    assert dataset.rows == 2000


def test_nothing_is_left_when_counting_tokens_fails(ingestion: Ingestion, volume: Volume) -> None:
    def broken(texts: list[str]) -> list[int]:
        raise RuntimeError(f"{len(texts)} texts")

    with pytest.raises(RuntimeError):
        ingest(
            Upload(io.BytesIO(GOOD.encode()), "tea.csv"),
            store=ingestion.store,
            volume=volume,
            count_tokens=broken,
        )
    assert ingestion.leftovers() == []


@pytest.mark.parametrize(
    ("content", "filename"),
    [
        (b"PK\x03\x04..", "a.csv"),
        (b"<?xml version='1.0'?><xliff/>", "a.xml"),
        (b"prose without a separator", "a.txt"),
        (b"\x1f\x8b\x08", "a.csv.gz"),
        (b"MZ\0\1", "a.exe"),
    ],
)
def test_other_formats_are_refused_with_the_list_of_accepted_ones(
    ingestion: Ingestion, content: bytes, filename: str
) -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        ingestion.take(content, filename)

    assert caught.value.status_code == 415
    assert "JSONL" in caught.value.message
    assert caught.value.extra["accepted"] == ["csv", "tsv", "jsonl", "json", "tmx", "parquet"]
    assert ingestion.leftovers() == []


def test_memory_does_not_grow_with_the_length_of_the_rows(
    ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ingestion.ingest._BATCH_CHARS", 100_000)
    text = "word" * 8000
    data = "prompt,completion\n" + "".join(f"{i} {text},{text} {i}\n" for i in range(200))  # 13 MB
    # BytesIO shares the bytes; a batch of rows in some forms is what remains.
    assert ingestion.peak_memory(data.encode(), "corpus.csv") < len(data) / 2


def test_the_published_folder_holds_the_rows_and_the_record(ingestion: Ingestion) -> None:
    dataset = ingestion.take(GOOD)
    folder = ingestion.volume.datasets / dataset.id
    assert sorted(p.name for p in folder.iterdir()) == ["dataset.json", ROWS_FILE]
    assert list((ingestion.volume.root / "staging").iterdir()) == []


def test_a_refusal_that_skip_would_not_mend_does_not_offer_it(ingestion: Ingestion) -> None:
    error: InvalidError = ingestion.refusal(GOOD + '"never closed,x\ny,z\n')
    assert "on_error=skip" not in error.message
    assert faults(error) == [(4, None, "csv_syntax")]
