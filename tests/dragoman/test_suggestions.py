import asyncio
import json
from pathlib import Path

import pytest

import dragoman


def test_suggestions_become_a_dataset(client: dragoman.Client, tmp_path: Path) -> None:
    client.suggestions.add("I am tall.", "Tall, I am.", adapter="yoda")
    client.suggestions.add("I am old.", "Old, I am.", adapter="yoda@1")
    path = client.suggestions.download(tmp_path / "better.jsonl", adapter="yoda")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["prompt"], line["completion"]) for line in lines[-2:]] == [
        ("I am tall.", "Tall, I am."),
        ("I am old.", "Old, I am."),
    ]
    client.suggestions.add("I am new.", "New, I am.", source="en", target="en-x-yoda")
    every = client.suggestions.download(tmp_path / "every.jsonl").read_text()
    (found,) = [
        line for line in map(json.loads, every.splitlines()) if line["prompt"] == "I am new."
    ]
    assert found["target"] == "en-x-yoda"
    dataset = client.datasets.upload(path)
    assert dataset.mapping == {"source": "prompt", "target": "completion"}

    rows = client.datasets.download(dataset.id, tmp_path / "rows.jsonl")
    assert client.datasets.upload(rows).id == dataset.id


def test_the_async_client_does_the_same(service_url: str, tmp_path: Path) -> None:
    async def work() -> tuple[Path, Path]:
        async with dragoman.AsyncClient(service_url) as client:
            await client.suggestions.add("王怒。", "王发怒了。", adapter="wenyan@1")
            every = await client.suggestions.download(tmp_path / "all.jsonl")
            dataset = await client.datasets.upload(every)
            return every, await client.datasets.download(dataset.id, tmp_path / "rows.jsonl")

    every, rows = asyncio.run(work())
    assert "王发怒了。" in every.read_text()
    assert "王发怒了。" in rows.read_text()


def test_what_is_refused(client: dragoman.Client, tmp_path: Path) -> None:
    with pytest.raises(dragoman.NotFoundError):
        client.suggestions.add("a", "b", adapter="nobody")
    with pytest.raises(dragoman.InvalidError):
        client.suggestions.add("a", "b", source="en")
    with pytest.raises(dragoman.NotFoundError):
        client.suggestions.download(tmp_path / "x.jsonl", adapter="nobody")
    with pytest.raises(dragoman.NotFoundError):
        client.datasets.download("nobody", tmp_path / "x.jsonl")
    assert list(tmp_path.iterdir()) == []
