import json
from typing import Any

import pytest

from core.datasets import Row
from tests.app.ingestion.uploads import Ingestion, faults

ROW = Row(prompt="a", completion="b")


def line(key: str, *turns: Any) -> str:
    return json.dumps({key: list(turns)}) + "\n"


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("key", "turns"),
    [
        ("messages", [said("user", "a"), said("assistant", "b")]),
        ("conversations", [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]),
        ("conversations", [said("user", "a"), said("assistant", "b")]),
        ("conversations", [{"user": "a", "assistant": "b"}]),
    ],
)
def test_one_question_and_one_answer(ingestion: Ingestion, key: str, turns: list[Any]) -> None:
    dataset = ingestion.take(line(key, *turns), "chat.jsonl")
    assert dataset.preview == [ROW]
    assert dataset.mapping == {"messages": key}
    assert dataset.report.warnings == []


def test_a_column_of_turns_may_be_mapped(ingestion: Ingestion) -> None:
    content = line("chat", said("user", "a"), said("assistant", "b"))
    assert ingestion.rows(content, "chat.jsonl", mapping={"messages": "chat"}) == [ROW]


def test_a_system_turn_is_ignored_with_a_warning(ingestion: Ingestion) -> None:
    content = line("messages", said("system", "s"), said("user", "a"), said("assistant", "b"))
    dataset = ingestion.take(content, "chat.jsonl")
    assert dataset.preview == [ROW]
    assert dataset.report.warnings == [
        "1 row has a system turn, which is ignored; a job's prompt.system sets one (line 1)"
    ]


@pytest.mark.parametrize(
    ("turns", "code"),
    [
        ([said("user", "a"), said("assistant", "b")] * 2, "multi_turn"),
        ([{"user": "a", "assistant": "b"}, {"user": "c", "assistant": "d"}], "multi_turn"),
        ([], "turns_invalid"),
        ([said("user", "a")], "turns_invalid"),
        ([said("assistant", "a"), said("user", "b")], "turns_invalid"),
        (["a", "b"], "turns_invalid"),
        ([{"role": "user", "text": "a"}], "turns_invalid"),
        ([said("tool", "a"), said("assistant", "b")], "role_unknown"),
        ([{"role": 3, "content": "a"}], "role_unknown"),
        ([said("user", " "), said("assistant", "b")], "empty"),
        ([said("user", "a"), said("assistant", None)], "empty"),
        ([said("user", [{"type": "text"}]), said("assistant", "b")], "not_text"),
    ],
)
def test_other_conversations_are_faulty_rows(
    ingestion: Ingestion, turns: list[Any], code: str
) -> None:
    good = line("messages", said("user", "a"), said("assistant", "b"))
    content = good + line("messages", *turns)
    assert faults(ingestion.refusal(content, "chat.jsonl")) == [(2, "messages", code)]
    assert ingestion.rows(content, "chat.jsonl", on_error="skip") == [ROW]


def test_turns_that_are_no_list_are_a_faulty_row(ingestion: Ingestion) -> None:
    error = ingestion.refusal('messages,note\n"[{}]",x\n', "chat.csv")
    assert faults(error) == [(2, "messages", "turns_invalid")]
