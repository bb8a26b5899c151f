"""Through the real application: the tokenizer and the chat template of the embedded base model."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from transformers import AutoTokenizer

from app.deps import get_services
from app.main import create_app
from app.services import Services
from core.base_model import EMBEDDED
from core.holdout import HoldOut
from core.prompt import Prompt, PromptRenderer, seal_prompt
from core.settings import Settings

CHAT = [
    {"messages": [{"user": "I am late.", "assistant": "Late, I am."}]},
    {
        "messages": [
            {"user": "The tea is hot.", "assistant": "Hot, the tea is."},
            {"user": "We drink it.", "assistant": "Drink it, we do."},
        ]
    },
]
EVERY = [True, True, True, True]
ANSWERS = [False, True, False, True]
LAST = [False, False, False, True]


@pytest.fixture(scope="module")
def dataset_id(client: TestClient) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in CHAT)
    more = "".join(
        json.dumps({"messages": [{"user": f"Row {i}.", "assistant": "Yes."}]}) + "\n"
        for i in range(150)
    )
    response = client.post("/datasets", files={"file": ("chat.jsonl", (lines + more).encode())})
    assert response.status_code == 201
    return str(response.json()["id"])


def preview(client: TestClient, dataset_id: str, config: Any = None, **query: Any) -> Response:
    if config is not None:
        query["adapter_config"] = config if isinstance(config, str) else json.dumps(config)
    return client.get(f"/datasets/{dataset_id}/preview", params=query)


def test_rows_are_shown_as_the_model_reads_them(client: TestClient, dataset_id: str) -> None:
    config = {"prompt": {"system": "As Yoda you speak.", "template": "Say: {text}"}}
    rows = preview(client, dataset_id, config, n=2).json()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    renderer = PromptRenderer(tokenizer, seal_prompt(Prompt(**config["prompt"]), tokenizer))

    [question, answer] = rows[0]["segments"]
    assert question["text"] == renderer.prompt_text("I am late.")
    assert "As Yoda you speak." in question["text"]
    assert question["tokens"] == rows[0]["prompt_tokens"] == len(renderer.prompt_ids("I am late."))
    completion_ids = renderer.completion_ids("I am late.", "Late, I am.")
    assert answer["tokens"] == rows[0]["completion_tokens"] == len(completion_ids)
    assert (question["trained"], answer["trained"]) == (False, True)
    for row in rows:
        assert row["text"] == "".join(segment["text"] for segment in row["segments"])
        assert row["tokens"] == sum(segment["tokens"] for segment in row["segments"])
        assert row["tokens"] == len(tokenizer.encode(row["text"], add_special_tokens=False))
        assert row["prompt_tokens"] + row["completion_tokens"] == row["tokens"]
    assert rows[1]["text"].count("As Yoda you speak.") == 1
    assert len(rows[1]["segments"]) == 4


@pytest.mark.parametrize(
    ("training", "trained"),
    [
        ({}, ANSWERS),
        ({"assistant_only_loss": True}, ANSWERS),
        ({"assistant_only_loss": True, "completion_only_loss": False}, ANSWERS),
        ({"assistant_only_loss": False}, LAST),
        ({"assistant_only_loss": False, "completion_only_loss": False}, EVERY),
        ({"completion_only_loss": False}, EVERY),
    ],
)
def test_the_trained_part_is_that_of_the_config(
    client: TestClient, dataset_id: str, training: dict[str, bool], trained: list[bool]
) -> None:
    row = preview(client, dataset_id, {"training": training}).json()[1]
    assert [segment["trained"] for segment in row["segments"]] == trained


def test_rows_that_are_too_long_are_marked(client: TestClient, dataset_id: str) -> None:
    short, long = preview(client, dataset_id, {"training": {"max_length": 24}}, n=2).json()
    assert (short["too_long"], long["too_long"]) == (short["tokens"] > 24, True)
    assert short["tokens"] < long["tokens"]
    rows = preview(client, dataset_id, {"training": {"max_length": long["tokens"]}}, n=2).json()
    assert [row["too_long"] for row in rows] == [False, False]


@pytest.mark.parametrize(
    ("config", "holdout"),
    [(None, 15), ({"evaluation": {"holdout": 60}}, 60), ({"evaluation": {"holdout": 0.3}}, 0.3)],
)
def test_rows_that_are_held_out_are_marked(
    client: TestClient, app_settings: Settings, dataset_id: str, config: Any, holdout: int | float
) -> None:
    rows = preview(client, dataset_id, config, n=100).json()
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    prompts = list(services.datasets.prompts(dataset_id))
    held = HoldOut.choose(prompts, holdout)
    assert [row["held_out"] for row in rows] == [held.holds(p) for p in prompts[:100]]
    assert 0 < sum(row["held_out"] for row in rows) < 100


def test_rows_are_read_once_for_what_is_held_out(
    client: TestClient, dataset_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client.app.state.services.datasets  # type: ignore[attr-defined]
    prompts, num_reads = store.prompts, Counter[str]()

    def counted(dataset_id: str) -> Iterator[str]:
        num_reads[dataset_id] += 1
        return prompts(dataset_id)  # type: ignore[no-any-return]

    monkeypatch.setattr(store, "prompts", counted)
    for holdout in (7, 0.07, 1, 7, 0.07):
        held = [
            row["held_out"]
            for row in preview(
                client, dataset_id, {"evaluation": {"holdout": holdout}}, n=100
            ).json()
        ]
        choice = HoldOut.choose(prompts(dataset_id), holdout)
        assert held == [choice.holds(p) for p in islice(prompts(dataset_id), 100)]
    assert num_reads[dataset_id] == 3


def test_how_many_rows_is_bounded(client: TestClient, dataset_id: str) -> None:
    assert len(preview(client, dataset_id).json()) == 5
    assert len(preview(client, dataset_id, n=1).json()) == 1
    for n in (0, 101, -1, "x"):
        response = preview(client, dataset_id, n=n)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["query", "n"]


@pytest.mark.parametrize(
    ("config", "loc"),
    [
        ({"training": {"max_length": 0}}, ["training", "max_length"]),
        ({"trainning": {}}, ["trainning"]),
        ({"prompt": {"template": "no place"}}, ["prompt", "template"]),
        ({"prompt": {"system": "\ud800"}}, ["prompt", "system"]),
        ({"preset": "none"}, ["preset"]),
        ({"evaluation": {"holdout": "many"}}, ["evaluation", "holdout"]),
        ({"lora": {"target_modules": [1]}}, ["lora", "target_modules", 0]),
        ([], []),
        ("null", []),
        ("NaN", []),
    ],
)
def test_a_config_that_cannot_be_is_located(
    client: TestClient, dataset_id: str, config: Any, loc: list[str | int]
) -> None:
    response = preview(client, dataset_id, config)
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", "adapter_config", *loc]


def test_a_config_that_is_no_json_is_malformed(client: TestClient, dataset_id: str) -> None:
    response = preview(client, dataset_id, "{")
    assert (response.status_code, response.json()["code"]) == (400, "malformed")
    assert "adapter_config is not JSON" in response.json()["detail"]


def test_an_empty_config_is_the_default(client: TestClient, dataset_id: str) -> None:
    assert preview(client, dataset_id, "").json() == preview(client, dataset_id, {}).json()


def test_a_preset_may_be_named(client: TestClient, dataset_id: str) -> None:
    assert preview(client, dataset_id, {"preset": "wenyan-llama"}).status_code == 200


def test_an_unknown_dataset_is_not_found(client: TestClient) -> None:
    response = preview(client, "ds-0000000000000000")
    assert (response.status_code, response.json()["code"]) == (404, "dataset_not_found")


@pytest.fixture
def loading_client(app_settings: Settings) -> Iterator[TestClient]:
    """An application whose base model is still being loaded."""
    app: FastAPI = create_app(app_settings)
    services = Services(app_settings)
    app.dependency_overrides[get_services] = lambda: services
    # Without the context manager the lifespan, which loads the model, does not start.
    yield TestClient(app)
    services.redis.close()


def test_while_the_model_loads_it_is_not_ready(loading_client: TestClient, dataset_id: str) -> None:
    response = preview(loading_client, dataset_id)
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert int(response.headers["retry-after"]) > 0
