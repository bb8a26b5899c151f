import pytest

from app.ingestion.mapping import Mapping, guess_mapping, parse_mapping
from app.ingestion.records import UnreadableError
from core.datasets import Row, RowWarning
from core.errors import InvalidError
from tests.app.ingestion.uploads import Ingestion, faults


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt completion", "prompt completion"),
        ("id completion prompt", "prompt completion"),
        ("Prompt Completion note", "Prompt Completion"),
        ("source target note", "source target"),
        ("sentence translation translation_extra", "sentence translation_extra"),
        ("sentence translation note", "sentence translation"),
        ("input output note", "input output"),
        ("instruction output note", "instruction output"),
        ("instruction response category", "instruction response"),
        ("question answer note", "question answer"),
        ("classical modern note", "classical modern"),
        ("src tgt note", "src tgt"),
        ("id en fr", "en fr"),
        ("id fr en", "fr en"),
        ("no en zh-CN note", "en zh-CN"),
        ("left right", "left right"),
    ],
)
def test_common_names_are_known(columns: str, expected: str) -> None:
    mapping = guess_mapping(columns.split())
    assert [mapping.source, mapping.target] == expected.split()


@pytest.mark.parametrize(
    "columns", [["prompt"], ["a", "b", "c"], ["id", "de", "fr"], ["en", "de", "fr"]]
)
def test_where_there_is_no_telling_the_columns_are_listed(columns: list[str]) -> None:
    with pytest.raises(UnreadableError) as caught:
        guess_mapping(columns)
    assert caught.value.fault.code == "mapping_required"
    assert ", ".join(map(repr, columns)) in str(caught.value)
    assert 'mapping={"source"' in str(caught.value)


def test_many_columns_are_not_all_listed() -> None:
    with pytest.raises(UnreadableError, match=r"… \(500 in all\)"):
        guess_mapping([f"c{i}" for i in range(500)])


def test_a_missing_column_is_refused(ingestion: Ingestion) -> None:
    error = ingestion.refusal("prompt\na\nb\n")
    assert faults(error) == [(1, None, "mapping_required")]
    assert "'prompt'" in error.message


def test_a_mapping_comes_before_any_guess(ingestion: Ingestion) -> None:
    mapping = {"source": "classical", "target": "note"}
    dataset = ingestion.take("classical,modern,note\na,b,c\n", mapping=mapping)
    assert dataset.preview == [Row(prompt="a", completion="c")]
    assert dataset.mapping == mapping


@pytest.mark.parametrize("filename", ["a.csv", "a.jsonl"])
def test_a_mapping_to_a_missing_column_is_refused(ingestion: Ingestion, filename: str) -> None:
    content = "a,b\n1,2\n" if filename == "a.csv" else '{"a": "1", "b": "2"}\n'
    error = ingestion.refusal(content, filename, mapping={"source": "a", "target": "x"})
    assert faults(error) == [(1, "x", "column_missing")]
    assert "the columns are 'a', 'b'" in error.message


def test_two_columns_of_unknown_names_are_taken_in_order_with_a_warning(
    ingestion: Ingestion,
) -> None:
    dataset = ingestion.take("wenyan,baihua\na,b\n")
    assert dataset.mapping == {"source": "wenyan", "target": "baihua"}
    assert dataset.report.warnings == [
        RowWarning(
            code="mapping_guessed",
            message="'wenyan' was taken as the source and 'baihua' as the target, as they come "
            "first and second; send mapping if it is otherwise",
        )
    ]


def test_what_was_recorded_is_accepted_again(ingestion: Ingestion) -> None:
    content = "instruction,input,output\na,,b\nc,d,e\n"
    dataset = ingestion.take(content)
    assert dataset.mapping == {"source": "instruction", "input": "input", "target": "output"}
    assert ingestion.take(content, mapping=dataset.mapping) == dataset


def test_alpaca_puts_the_input_below_the_instruction(ingestion: Ingestion) -> None:
    lines = [
        '{"instruction": "Translate.", "input": "安", "output": "Peace"}',
        '{"instruction": "Say hello.", "input": "", "output": "Hello"}',
        '{"instruction": "Say bye.", "output": "Bye"}',
        '{"instruction": "Say no.", "input": null, "output": "No"}',
    ]
    rows = ingestion.rows("\n".join(lines), "alpaca.jsonl")
    assert [row.prompt for row in rows] == ["Translate.\n安", "Say hello.", "Say bye.", "Say no."]

    error = InvalidError
    with pytest.raises(error, match="column 'input': is a number"):
        ingestion.take('{"instruction": "a", "input": 3, "output": "b"}', "alpaca.jsonl")


def test_a_mapping_is_parsed() -> None:
    assert parse_mapping('{"source": "a", "target": "b"}') == Mapping(source="a", target="b")
    assert parse_mapping('{"messages": "chat"}').columns() == ["chat"]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        '{"source": "a"}',
        '{"source": "a", "target": 1}',
        '{"source": "a", "target": "a"}',
        '{"source": "a", "input": "b", "target": "b"}',
        '{"source": "a", "target": "b", "messages": "c"}',
        '{"source": "a", "target": ""}',
        '{"source": "a", "target": "b", "extra": "c"}',
        '{"source": "\\ud800", "target": "b"}',
        '{"source": "' + "a" * 5000 + '", "target": "b"}',
        "[" * 10_000,
    ],
)
def test_a_mapping_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_mapping(text)
    assert caught.value.code == "mapping_invalid"
    assert "mapping" in caught.value.message
    assert len(caught.value.message) < 500
    caught.value.message.encode()
