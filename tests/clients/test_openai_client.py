"""OpenAI's own Python client, unmodified, against the embedded base and the adapters in the box."""

import asyncio
import io
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

TEXT = "The soup is cold and the bread is old."
ROWS = [("I see you.", "See you, I do."), ("The soup is cold.", "Cold, the soup is.")]


@pytest.fixture(scope="module")
def api(boxed_url: str) -> OpenAI:
    return OpenAI(base_url=f"{boxed_url}/v1", api_key="any", max_retries=0)


def ask(api: OpenAI, text: str = TEXT, model: str = "yoda", **options: Any) -> Any:
    return api.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], **options
    )


def lines(rows: list[tuple[str, str]]) -> bytes:
    turns = ([{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in rows)
    return "".join(json.dumps({"messages": t}) + "\n" for t in turns).encode()


def test_models(api: OpenAI) -> None:
    ids = {model.id for model in api.models.list()}
    assert {"base", "yoda", "yoda@1", "wenyan", "wenyan@1"} <= ids
    model = api.models.retrieve("yoda@1")
    assert (model.id, model.object) == ("yoda@1", "model")
    assert model.created > 1_700_000_000
    with pytest.raises(openai.NotFoundError) as raised:
        api.models.retrieve("nobody")
    assert raised.value.code == "model_not_found"
    assert "yoda" in raised.value.message
    for model_id, error in (("yoda", openai.BadRequestError), ("yoda@1", openai.ConflictError)):
        with pytest.raises(error):
            api.models.delete(model_id)


def test_a_chat_is_a_translation(api: OpenAI) -> None:
    answer = ask(api)
    assert answer.model == "yoda@1"
    assert answer.object == "chat.completion"
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content not in ("", TEXT)
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 10
    with_history = api.chat.completions.create(
        model="yoda@1",
        messages=[
            {"role": "system", "content": "You are a translator."},
            {"role": "user", "content": "Good morning."},
            {"role": "assistant", "content": "Morning, it is."},
            {"role": "user", "content": [{"type": "text", "text": TEXT}]},
        ],
    )
    assert with_history.choices[0].message.content == choice.message.content


def test_the_base_reads_the_whole_conversation(api: OpenAI) -> None:
    short = ask(api, model="base")
    assert short.model == "base"
    longer = api.chat.completions.create(
        model="base",
        max_tokens=5,
        messages=[
            {"role": "developer", "content": "Repeat what you are told."},
            {"role": "user", "content": "Good morning."},
            {"role": "assistant", "content": "Good morning."},
            {"role": "user", "content": TEXT},
        ],
    )
    assert longer.usage.prompt_tokens > short.usage.prompt_tokens + 10
    assert longer.usage.completion_tokens <= 5
    with pytest.raises(openai.BadRequestError, match="must be the user's"):
        api.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        )


@pytest.mark.parametrize("num_choices", [1, 2])
def test_stream(api: OpenAI, num_choices: int) -> None:
    whole = ask(api, n=num_choices, temperature=1.0, seed=5)
    stream = ask(
        api,
        n=num_choices,
        temperature=1.0,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [""] * num_choices
    reasons: dict[int, str] = {}
    for chunk in chunks[:-1]:
        assert chunk.model == "yoda@1"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == dict.fromkeys(range(num_choices), "stop")
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 4
    assert all(chunk.usage is None for chunk in ask(api, stream=True))


def test_decoding_options(api: OpenAI) -> None:
    hot = {"temperature": 1.5, "max_tokens": 12}
    first, second, other = (ask(api, **hot, n=3, seed=seed).choices for seed in (1, 1, 2))
    contents = [choice.message.content for choice in first]
    assert contents == [choice.message.content for choice in second]
    assert contents != [choice.message.content for choice in other]
    assert len(set(contents)) > 1, "choices are drawn apart"
    cut = ask(api, max_completion_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)
    whole = ask(api).choices[0].message.content
    word = whole.split()[1]
    assert ask(api, stop=[word]).choices[0].message.content == whole.partition(word)[0]
    assert ask(api, max_tokens=10**6, top_p=0, temperature=1).choices[0].message.content == whole
    assert ask(api, presence_penalty=1, user="me", logit_bias={}, tools=None).choices


def test_errors_are_openais(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        ask(api, model="gpt-4o-mini")
    assert not_found.value.code == "model_not_found"
    assert not_found.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as bad:
        ask(api, temperature=-1)
    assert bad.value.param == "temperature"
    for options in ({"n": 100}, {"n": 0}, {"stop": ["x" * 300]}, {"max_tokens": 0}):
        with pytest.raises(openai.BadRequestError):
            ask(api, **options)
    with pytest.raises(openai.BadRequestError, match="user message"):
        api.chat.completions.create(
            model="yoda", messages=[{"role": "system", "content": "Translate."}]
        )
    with pytest.raises(openai.APIStatusError) as large:
        ask(api, text="word " * 10_000)
    assert large.value.status_code == 413


def test_asynchronously(boxed_url: str) -> None:
    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=f"{boxed_url}/v1", api_key="any") as api:
            answers = await asyncio.gather(
                *(
                    api.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": TEXT}]
                    )
                    for model in ("yoda", "base", "yoda")
                )
            )
        return [answer.choices[0].message.content or "" for answer in answers]

    first, base, second = asyncio.run(run())
    assert first == second != base


def test_files(api: OpenAI) -> None:
    content = lines(ROWS)
    file = api.files.create(file=("pairs.jsonl", io.BytesIO(content)), purpose="fine-tune")
    assert (file.filename, file.purpose, file.status) == ("pairs.jsonl", "fine-tune", "processed")
    assert api.files.wait_for_processing(file.id, poll_interval=0.01).id == file.id
    assert api.files.retrieve(file.id) == file
    assert api.files.content(file.id).content == content
    other = api.files.create(file=("b.jsonl", lines(ROWS[:1])), purpose="fine-tune")
    assert [f.id for f in api.files.list(limit=1)] == [other.id, file.id], "page after page"
    assert [f.id for f in api.files.list(order="asc")] == [file.id, other.id]
    assert list(api.files.list(purpose="batch")) == []
    for one in (file, other):
        assert api.files.delete(one.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        api.files.create(file=("a.jsonl", content), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="line 2") as faulty:
        api.files.create(file=("a.jsonl", content[:-3]), purpose="fine-tune")
    assert faulty.value.code == "dataset_invalid"
