import json
from typing import Any

import pytest

from core.datasets import Exchange, Row
from tests.app.ingestion.uploads import Ingestion, faults, warnings

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
    assert warnings(dataset) == {"system_ignored": [1]}


LONGER = Row(
    prompt="a",
    completion="b",
    further=(Exchange(prompt="c", completion="d"), Exchange(prompt="e", completion="f")),
)


@pytest.mark.parametrize(
    ("key", "turns"),
    [
        (
            "messages",
            [said(r, t) for r, t in zip(["user", "assistant"] * 3, "abcdef", strict=True)],
        ),
        (
            "conversations",
            [{"from": r, "value": t} for r, t in zip(["human", "gpt"] * 3, "abcdef", strict=True)],
        ),
        ("conversations", [{"user": u, "assistant": a} for u, a in ("ab", "cd", "ef")]),
    ],
)
def test_a_conversation_of_several_exchanges_is_one_row(
    ingestion: Ingestion, key: str, turns: list[Any]
) -> None:
    dataset = ingestion.take(line(key, *turns), "chat.jsonl")
    assert dataset.preview == [LONGER]
    assert list(ingestion.store.rows(dataset.id)) == [LONGER]
    assert dataset.report.warnings == []
    assert dataset.report.tokens is not None
    assert dataset.report.tokens.total == 6


def test_conversations_may_begin_alike(ingestion: Ingestion) -> None:
    first = [said("user", "a"), said("assistant", "b")]
    lines = [line("messages", *first, *first), line("messages", *first), line("messages", *first)]
    other = line("messages", said("user", "a"), said("assistant", "z"), *first)
    dataset = ingestion.take("".join([*lines, other]), "chat.jsonl")
    assert dataset.rows == 3
    assert warnings(dataset) == {"duplicates": [3]}


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("user user assistant", "turn 2 is the user's, and follows the user's"),
        ("user assistant assistant", "turn 3 is the assistant's, and follows the assistant's"),
        ("system assistant user", "turn 2 is the assistant's, and comes first"),
        ("assistant", "turn 1 is the assistant's, and comes first"),
        ("user assistant user", "ends with the user's turn, so nothing is answered"),
        ("user assistant system user assistant", "has a system turn as its turn 3"),
        ("system system user assistant", "has a system turn as its turn 2"),
        ("system", "has no turns, so nothing is answered"),
    ],
)
def test_a_turn_out_of_order_is_named(ingestion: Ingestion, roles: str, reason: str) -> None:
    turns = [said(role, "x") for role in roles.split()]
    error = ingestion.refusal(line("messages", *turns), "chat.jsonl")
    assert faults(error) == [(1, "messages", "turns_invalid")]
    assert reason in error.message


def test_a_conversation_beyond_any_context_is_a_faulty_row(ingestion: Ingestion) -> None:
    many = line("messages", *[{"user": "a", "assistant": "b"}] * 257)
    long = line("messages", *[{"user": "a" * 60_000, "assistant": "b"}] * 3)
    error = ingestion.refusal(many + long, "chat.jsonl")
    assert [code for *_, code in faults(error)] == ["too_many_turns", "conversation_too_long"]


@pytest.mark.parametrize(
    ("turns", "code"),
    [
        ([said("user", "a"), said("assistant", "b"), said("user", " ")], "turns_invalid"),
        ([{"user": "a", "assistant": "b"}, {"user": "c", "assistant": ""}], "empty"),
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
