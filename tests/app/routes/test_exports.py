"""What the server gives out as JSON lines comes in again as a dataset, here and in `datasets.load_dataset`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from fastapi.testclient import TestClient

from core.settings import Settings

PAIRS = 'prompt,completion\n"I see,\nyou.",See\u2028you\n你好。,Hello.\nI see you.,"See ""you"""\n'
TALK = [
    {"role": "user", "content": "I see you."},
    {"role": "assistant", "content": "See you, I do."},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": "Again, see you I do."},
]


@pytest.fixture
def suggestions(app_settings: Settings) -> Iterator[Path]:
    folder = app_settings.data_dir / "suggestions"
    yield folder
    for path in folder.iterdir():
        path.unlink()


def upload(client: TestClient, name: str, content: bytes) -> Any:
    response = client.post("/datasets", files={"file": (name, content)})
    assert response.status_code == 201, response.text
    return response.json()


def suggest(client: TestClient, **body: Any) -> Any:
    return client.post("/suggest", json={"q": "I see you.", "s": "Arr, I see ye."} | body)


def loaded(content: bytes, folder: Path) -> Any:
    path = folder / "exported.jsonl"
    path.write_bytes(content)
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "c"))


def test_pairs_come_back_as_they_are(client: TestClient, tmp_path: Path) -> None:
    dataset = upload(client, "pairs.csv", PAIRS.encode())
    response = client.get(f"/datasets/{dataset['id']}/download")
    assert response.headers["content-type"] == "application/jsonl"
    assert f'filename="{dataset["id"]}.jsonl"' in response.headers["content-disposition"]
    assert upload(client, "again.jsonl", response.content)["id"] == dataset["id"]
    rows = loaded(response.content, tmp_path)
    assert rows.column_names == ["prompt", "completion"]
    assert rows["completion"] == ["See\u2028you", "Hello.", 'See "you"']
    assert rows["prompt"][0] == "I see,\nyou."


def test_conversations_come_back_as_they_are(client: TestClient, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"messages": TALK[:n]}) + "\n" for n in (2, 4))
    dataset = upload(client, "talk.jsonl", lines.encode())
    response = client.get(f"/datasets/{dataset['id']}/download")
    assert upload(client, "again.jsonl", response.content)["id"] == dataset["id"]
    rows = loaded(response.content, tmp_path)
    assert rows["messages"] == [TALK[:2], TALK]


def test_a_dataset_that_is_not_there(client: TestClient) -> None:
    response = client.get("/datasets/ds-none/download")
    assert (response.status_code, response.json()["code"]) == (404, "dataset_not_found")


@pytest.mark.usefixtures("suggestions")
def test_suggestions_become_a_dataset(client: TestClient, tmp_path: Path) -> None:
    by_name = suggest(client, adapter="pirate@1", s="I see\nye.")
    assert by_name.status_code == 200, by_name.text
    assert suggest(client, source="en", target="en-x-pirate", q="Go.").status_code == 200
    assert suggest(client, adapter="modern", q="王怒。", s="王发怒了。").status_code == 200
    mine = client.get("/suggestions", params={"adapter": "pirate"})
    assert mine.headers["content-type"] == "application/jsonl"
    assert 'filename="pirate-suggestions.jsonl"' in mine.headers["content-disposition"]
    rows = loaded(mine.content, tmp_path)
    assert rows["completion"] == ["I see\nye.", "Arr, I see ye."]
    assert rows["adapter"] == ["pirate@1", "pirate@1"]
    every = client.get("/suggestions")
    assert [json.loads(line)["adapter"] for line in every.text.splitlines()] == [
        *("modern@1", "pirate@1", "pirate@1")
    ]
    dataset = upload(client, "better.jsonl", mine.content)
    assert dataset["mapping"] == {"source": "prompt", "target": "completion"}
    assert dataset["rows"] == 2


def test_half_a_line_spoils_no_other(client: TestClient, suggestions: Path) -> None:
    suggest(client, adapter="pirate")
    with (suggestions / "pirate.jsonl").open("a") as file:
        file.write('{"prompt": "cut off\n')
    suggest(client, adapter="pirate", q="Go.")
    exported = client.get("/suggestions?adapter=pirate").text.splitlines()
    assert [json.loads(line)["prompt"] for line in exported] == ["I see you.", "Go."]


def test_nobody_has_suggested_anything(client: TestClient, suggestions: Path) -> None:
    assert client.get("/suggestions?adapter=pirate").content == b""
    assert client.get("/suggestions").content == b""
    unknown = client.get("/suggestions?adapter=nobody")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "adapter_not_found")
    for name in ("../datasets", "pirate@1", "base", "\u0660"):
        assert client.get("/suggestions", params={"adapter": name}).status_code == 422
    assert list(suggestions.iterdir()) == []


def test_what_nobody_can_learn_is_not_kept(client: TestClient, suggestions: Path) -> None:
    for body, status in (
        ({"adapter": "base"}, 422),
        ({"adapter": "nobody"}, 404),
        ({"adapter": "pirate@9"}, 404),
        ({"source": "en"}, 422),
        ({}, 422),
    ):
        assert suggest(client, **body).status_code == status, body
    assert list(suggestions.iterdir()) == []
