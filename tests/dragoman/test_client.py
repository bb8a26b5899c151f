"""The client against the real service."""

import asyncio
import json
import re
import subprocess
import sys

import pytest

import dragoman
from core import __version__
from tests.dragoman.servers import CuttingProxy, Reply, ScriptedServer, translated

TEXT = "The soup is cold and the bread is old."


def test_a_text_a_list_and_a_stream_agree(client: dragoman.Client) -> None:
    one = client.translate(TEXT, adapter="yoda")
    assert one.adapter == "yoda@1"
    assert one.finish_reason == "stop"
    assert one.usage.completion_tokens > 0
    several = client.translate([TEXT, "I am tall."], adapter="yoda@1", alternatives=1, seed=1)
    assert several.texts[0] == one.text
    assert len(several.alternatives) == 2  # of each text; one that only repeats it is left out
    with client.translate(TEXT, adapter="yoda", stream=True) as stream:
        pieces = [token.text for token in stream]
    assert len(pieces) > 1
    assert stream.result == one


def test_a_language_pair_chooses(client: dragoman.Client) -> None:
    answer = client.translate("王怒，遂去。", source="lzh", target="zh")
    assert answer.adapter == "wenyan@1"
    assert "zh" in next(lang for lang in client.languages() if lang.code == "lzh").targets


def test_the_async_client_answers_the_same(service_url: str, client: dragoman.Client) -> None:
    async def ask() -> tuple[list[str], str, dragoman.Readiness]:
        async with dragoman.AsyncClient(service_url) as asking:
            ready = await asking.wait_until_ready()
            async with await asking.translate(TEXT, adapter="yoda", stream=True) as stream:
                pieces = [token.text async for token in stream]
            many = [line.text async for line in asking.translate_many([TEXT], adapter="yoda")]
            assert stream.result is not None
            assert many == [stream.result.text]
            return pieces, stream.result.text, ready

    pieces, text, ready = asyncio.run(ask())
    assert text == client.translate(TEXT, adapter="yoda").text
    assert len(pieces) > 1
    assert ready.ok


def test_what_is_refused_says_why(client: dragoman.Client) -> None:
    with pytest.raises(dragoman.NotFoundError) as missing:
        client.translate(TEXT, adapter="nobody")
    assert missing.value.code == "adapter_not_found"
    assert "yoda" in missing.value.extra["adapters"]
    with pytest.raises(dragoman.InvalidError) as invalid:
        client.translate(TEXT, adapter="yoda", temperature=-1)
    assert invalid.value.errors[0]["loc"] == ["body", "temperature"]
    stream = client.translate(TEXT, adapter="nobody", stream=True)
    with pytest.raises(dragoman.NotFoundError):
        next(iter(stream))


def test_a_stream_that_is_cut_says_so(proxy: CuttingProxy) -> None:
    proxy.cuts, proxy.cut_after = 1, 500
    with dragoman.Client(proxy.url) as client:
        stream = client.translate(TEXT * 5, adapter="yoda", stream=True)
        with pytest.raises(dragoman.ConnectionFailedError):
            list(stream)
        assert stream.result is None
    assert proxy.num_cut == 1


def test_a_server_that_fails_in_the_middle_of_a_stream(scripted: ScriptedServer) -> None:
    events = (
        'event: token\ndata: {"index": 0, "text": "a\u2028b"}\n\n'
        'event: error\ndata: {"status": 503, "code": "step_failed", "detail": "no memory"}\n\n'
    )
    scripted.replies = [Reply(body=events, headers={"content-type": "text/event-stream"})]
    with dragoman.Client(scripted.url) as client:
        tokens = iter(client.translate("x", stream=True))
        assert next(tokens).text == "a\u2028b"
        with pytest.raises(dragoman.UnavailableError, match="no memory"):
            next(tokens)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("token", '{"index": 0, "te'),
        ("token", '{"index": "first"}'),
        ("done", "<html>Bad gateway</html>"),
        ("done", '{"translatedText": "x"}'),
        ("error", "null"),
        ("error", '{"detail": "no status"}'),
    ],
)
def test_a_broken_event_of_a_stream_is_named(
    scripted: ScriptedServer, kind: str, data: str
) -> None:
    stream = {"content-type": "text/event-stream"}
    scripted.replies = [Reply(body=f"event: {kind}\ndata: {data}\n\n", headers=stream)]
    expected = re.escape(f"'{kind}' holds {data!r}")
    with (
        dragoman.Client(scripted.url) as client,
        pytest.raises(dragoman.UnexpectedAnswerError, match=expected),
    ):
        list(client.translate("x", stream=True))

    async def ask() -> None:
        async with (
            dragoman.AsyncClient(scripted.url) as asking,
            await asking.translate("x", stream=True) as tokens,
        ):
            async for _ in tokens:
                pass

    with pytest.raises(dragoman.UnexpectedAnswerError, match=expected):
        asyncio.run(ask())


def test_events_of_a_newer_server_are_passed_over(scripted: ScriptedServer) -> None:
    done = json.dumps(translated("x").body)
    stream = {"content-type": "text/event-stream"}
    body = f"event: speed\ndata: fast\n\nevent: done\ndata: {done}\n\n"
    scripted.replies = [Reply(body=body, headers=stream)]
    with dragoman.Client(scripted.url) as client:
        answer = client.translate("x", stream=True)
        assert list(answer) == []
        assert answer.result is not None
        assert answer.result.text == "x"


def test_waiting_for_a_server_that_does_not_come(unused_url: str, scripted: ScriptedServer) -> None:
    with (
        dragoman.Client(unused_url, max_retries=0) as client,
        pytest.raises(dragoman.TimedOutError, match="cannot reach"),
    ):
        client.wait_until_ready(0.1)
    loading = {"base_model": {"ok": False, "reason": "is being loaded"}, "redis": {"ok": True}}
    scripted.replies = [Reply(503, {"status": "not ready", "checks": loading})]
    with (
        dragoman.Client(scripted.url) as client,
        pytest.raises(dragoman.TimedOutError, match="base_model: is being loaded"),
    ):
        client.wait_until_ready(0.1)


def test_the_client_is_light() -> None:
    heavy = {"torch", "transformers", "celery", "redis", "fastapi", "typer", "core", "app"}
    program = f"import sys, dragoman; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_one_version() -> None:
    assert dragoman.__version__ == __version__
