"""The datasets that the README uses are what they claim to be."""

from pathlib import Path

import pytest

from app.ingestion.ingest import Upload, ingest
from core.datasets import Dataset, DatasetStore
from core.volume import Volume

EXAMPLES = Path(__file__).parent.parent / "examples"


def ingest_example(name: str, volume: Volume) -> Dataset:
    with (EXAMPLES / name).open("rb") as file:
        return ingest(
            Upload(file, name),
            store=DatasetStore(volume),
            volume=volume,
            count_tokens=lambda texts: [len(text) for text in texts],
        )


@pytest.mark.parametrize(("name", "num_rows"), [("yoda.csv", 180), ("wenyan.jsonl", 79)])
def test_an_example_is_a_dataset_without_a_fault(name: str, num_rows: int, volume: Volume) -> None:
    dataset = ingest_example(name, volume)

    assert dataset.rows == num_rows
    assert dataset.mapping == {"source": "prompt", "target": "completion"}
    assert dataset.report.errors == []
    assert dataset.report.warnings == []
    assert dataset.report.duplicates == 0


@pytest.mark.parametrize("name", ["yoda.csv", "wenyan.jsonl"])
def test_no_source_occurs_twice(name: str, volume: Volume) -> None:
    dataset = ingest_example(name, volume)
    sources = {row.prompt.casefold() for row in DatasetStore(volume).rows(dataset.id)}
    assert len(sources) == dataset.rows


def test_conversations_of_several_turns(volume: Volume) -> None:
    dataset = ingest_example("wenyan-sharegpt.json", volume)

    assert dataset.mapping == {"messages": "conversations"}
    assert dataset.report.warnings == []
    assert dataset.report.errors == []
    rows = list(DatasetStore(volume).rows(dataset.id))
    assert len(rows) == dataset.rows == 40
    assert sum(len(row.exchanges) for row in rows) == 75
    sources = {exchange.prompt for row in rows for exchange in row.exchanges}
    assert len(sources) == 75
    others = DatasetStore(volume).prompts(ingest_example("wenyan.jsonl", volume).id)
    assert sources.isdisjoint(others)
