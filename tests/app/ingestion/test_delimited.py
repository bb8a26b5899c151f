import pytest

from core.datasets import Row
from tests.app.ingestion.uploads import Ingestion, faults

HEADER = "prompt,completion\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system(ingestion: Ingestion, end: str) -> None:
    rows = ingestion.rows(f"prompt,completion{end}a,b{end}c,d{end}")
    assert rows == [Row(prompt="a", completion="b"), Row(prompt="c", completion="d")]


def test_quotes_hold_delimiters_quotes_and_line_breaks(ingestion: Ingestion) -> None:
    rows = ingestion.rows(HEADER + '"a, ""b""\nc","d"\ne, "f, g"\n')
    assert rows == [
        Row(prompt='a, "b"\nc', completion="d"),
        Row(prompt="e", completion="f, g"),
    ]


def test_lines_are_counted_as_an_editor_counts_them(ingestion: Ingestion) -> None:
    error = ingestion.refusal("\n" + HEADER + '"one\ntwo\nthree",b\n\n"x\ny",\nz\n')
    assert faults(error) == [(7, "completion", "empty"), (9, None, "missing_columns")]


def test_ragged_rows_are_named(ingestion: Ingestion) -> None:
    error = ingestion.refusal(HEADER + "a\nb,c\nd,e,f\n")

    assert faults(error) == [(2, None, "missing_columns"), (4, None, "extra_columns")]
    assert "has 1 fields, but the header names 2 columns" in error.message


def test_delimiters_left_at_the_end_of_a_line_do_no_harm(ingestion: Ingestion) -> None:
    assert ingestion.rows(HEADER + "a,b,,\n") == [Row(prompt="a", completion="b")]


def test_blank_lines_are_passed_over(ingestion: Ingestion) -> None:
    assert len(ingestion.rows(HEADER + "\na,b\n\n   \nc,d\n\n")) == 2


def test_columns_without_a_name_are_passed_over(ingestion: Ingestion) -> None:
    dataset = ingestion.take(",classical,modern\n0,a,b\n1,c,d\n")
    assert dataset.columns == ["classical", "modern"]
    assert dataset.rows == 2


def test_a_column_named_twice_is_refused(ingestion: Ingestion) -> None:
    error = ingestion.refusal("prompt,completion,prompt\na,b,c\n")
    assert faults(error) == [(1, "prompt", "duplicate_column")]


def test_a_header_of_nothing_is_refused(ingestion: Ingestion) -> None:
    assert faults(ingestion.refusal(",,\na,b,c\n")) == [(1, None, "empty_file")]


def test_a_header_that_is_a_text_is_refused(ingestion: Ingestion) -> None:
    error = ingestion.refusal(f"{'x' * 2000},b\nc,d\n")
    assert faults(error) == [(1, None, "column_name_too_long")]
    assert len(error.message) < 400


def test_a_quote_left_open_is_refused_rather_than_swallowing_rows(ingestion: Ingestion) -> None:
    for on_error in ("fail", "skip"):
        error = ingestion.refusal(HEADER + 'a,b\n"c,d\ne,f\ng,h\n', on_error=on_error)
        assert faults(error) == [(3, None, "csv_syntax")]
        assert "double quote left open" in error.message


def test_a_quote_left_open_in_the_header_is_refused(ingestion: Ingestion) -> None:
    assert faults(ingestion.refusal('"prompt,completion\na,b\n')) == [(1, None, "csv_syntax")]


def test_text_behind_a_closing_quote_is_one_faulty_row(ingestion: Ingestion) -> None:
    content = HEADER + '"a" said he,b\nc,d\n'
    assert faults(ingestion.refusal(content)) == [(2, None, "csv_syntax")]
    assert ingestion.rows(content, on_error="skip") == [Row(prompt="c", completion="d")]


def test_a_huge_field_is_one_faulty_row(ingestion: Ingestion) -> None:
    content = HEADER + f"{'x' * 200_000},b\nc,d\n"
    assert faults(ingestion.refusal(content)) == [(2, None, "field_too_long")]
    assert ingestion.rows(content, on_error="skip") == [Row(prompt="c", completion="d")]


def test_a_huge_header_is_refused(ingestion: Ingestion) -> None:
    assert faults(ingestion.refusal("x" * 200_000 + "\n")) == [(1, None, "field_too_long")]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_may_be_written_with_other_delimiters(ingestion: Ingestion, delimiter: str) -> None:
    dataset = ingestion.take(
        f"prompt{delimiter}completion\na, b{delimiter}c; d, e\n".replace(
            "; d", "" if delimiter == ";" else "; d"
        )
    )
    assert dataset.preview[0].prompt == "a, b"
    assert dataset.format == "csv"


def test_tsv_takes_quotes_as_text_unless_they_wrap_a_field(ingestion: Ingestion) -> None:
    rows = ingestion.rows(
        'classical\tmodern\n"Stay," he said.\t"Go," she said, "go."\n"a ""b"""\t"c"\n\t\n"\td\n',
        "corpus.tsv",
        on_error="skip",
    )
    assert rows == [
        Row(prompt='"Stay," he said.', completion='"Go," she said, "go."'),
        Row(prompt='a "b"', completion="c"),
        Row(prompt='"', completion="d"),
    ]


def test_tsv_with_windows_line_ends(ingestion: Ingestion) -> None:
    assert ingestion.rows("src\ttgt\r\na\tb\r\n", "a.tab") == [Row(prompt="a", completion="b")]


def test_ragged_tsv_is_named(ingestion: Ingestion) -> None:
    error = ingestion.refusal("src\ttgt\na\nb\tc\td\n", "a.tsv")
    assert faults(error) == [(2, None, "missing_columns"), (3, None, "extra_columns")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("src\ttgt\na\tb\n", "tsv"), ("src,tgt\na,b\n", "csv"), ("src;tgt\na;b\n", "csv")],
)
@pytest.mark.parametrize("filename", ["corpus", "corpus.txt"])
def test_content_decides_where_the_name_does_not(
    ingestion: Ingestion, filename: str, content: str, expected: str
) -> None:
    assert ingestion.take(content, filename).format == expected
