import asyncio
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator

import pytest

import dragoman
from tests.dragoman.servers import Reply, ScriptedServer, Seen, problem, translated


def shout(seen: Seen) -> Reply:
    """Refuses what holds "bad"."""
    q = json.loads(seen.body)["q"]
    return (
        problem(413, "text_too_long", f"{q} is too long") if "bad" in q else translated(q.upper())
    )


def number(seen: Seen) -> int:
    """Of "t7" it is 7."""
    return int(json.loads(seen.body)["q"].removeprefix("t"))


def in_the_wrong_order(scripted: ScriptedServer) -> Callable[[Seen], Reply]:
    """Nothing is answered before two are under way, and each tenth text only after one that comes later."""

    def answer(seen: Seen) -> Reply:
        def is_time() -> bool:
            later = any(number(seen) < number(other) for other in scripted.answered)
            return scripted.most_at_once > 1 and (later or number(seen) % 10 != 0)

        return dataclasses.replace(shout(seen), after=is_time)

    return answer


def test_order_is_kept_and_what_is_under_way_is_bounded(scripted: ScriptedServer) -> None:
    scripted.answer = in_the_wrong_order(scripted)
    with dragoman.Client(scripted.url) as client:
        lines = list(client.translate_many((f"t{i}" for i in range(30)), concurrency=4))
    assert [line.text for line in lines] == [f"T{i}" for i in range(30)]
    assert [line.number for line in lines] == list(range(1, 31))
    assert 1 < scripted.most_at_once <= 4


def test_a_refused_text_is_reported_in_its_line(scripted: ScriptedServer) -> None:
    scripted.answer = shout
    with dragoman.Client(scripted.url) as client:
        fine, bad, blank, last = client.translate_many(["a", "bad", " ", "b"])
    assert (fine.text, last.text) == ("A", "B")
    assert bad.error is not None
    assert bad.error.code == "text_too_long"
    assert (blank.translation, blank.error) == (None, None)
    assert len(scripted.seen) == 3, "nothing is asked about a blank line"


@pytest.mark.parametrize(
    "reply",
    [
        problem(404, "adapter_not_found"),
        problem(401, "unauthorized"),
        problem(422, "invalid", errors=[{"loc": ["body", "temperature"], "msg": "too hot"}]),
    ],
)
def test_what_concerns_all_ends_it(scripted: ScriptedServer, reply: Reply) -> None:
    scripted.replies = [reply]
    with dragoman.Client(scripted.url) as client, pytest.raises(dragoman.ApiError):
        list(client.translate_many(["a"] * 50, concurrency=2))
    assert len(scripted.seen) < 10


def test_texts_may_be_endless(scripted: ScriptedServer) -> None:
    scripted.answer = shout
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield f"t{taken}"

    with dragoman.Client(scripted.url) as client:
        many = client.translate_many(endless(), concurrency=3)
        assert [line.text for line in itertools.islice(many, 5)] == ["T1", "T2", "T3", "T4", "T5"]
        many.close()
    assert taken <= 8


def test_the_async_client_does_the_same(scripted: ScriptedServer) -> None:
    wrong_order = in_the_wrong_order(scripted)
    scripted.answer = lambda seen: shout(seen) if b"bad" in seen.body else wrong_order(seen)

    async def ask() -> list[dragoman.Line]:
        texts = [f"t{i}" for i in range(12)] + ["bad"]
        async with dragoman.AsyncClient(scripted.url) as client:
            return [line async for line in client.translate_many(texts, concurrency=4)]

    *lines, bad = asyncio.run(ask())
    assert [line.text for line in lines] == [f"T{i}" for i in range(12)]
    assert bad.error is not None
    assert 1 < scripted.most_at_once <= 4
