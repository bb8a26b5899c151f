import dataclasses
from pathlib import Path

import pytest

import dragoman
from tests.dragoman.conftest import YODA


def test_a_dataset_comes_and_goes(client: dragoman.Client) -> None:
    content = b"left,right\nI am tall.,Tall I am.\nYou are old.,Old you are.\nbroken,\n"
    with pytest.raises(dragoman.InvalidError) as caught:
        client.datasets.upload(
            content, filename="pairs.csv", mapping={"source": "left", "target": "right"}
        )
    assert caught.value.extra["report"]["errors"][0]["line"] == 4
    dataset = client.datasets.upload(
        content,
        filename="pairs.csv",
        name="my pairs",
        mapping={"source": "left", "target": "right"},
        on_error="skip",
    )
    assert (dataset.rows, dataset.name, dataset.report.unusable) == (2, "my pairs", 1)
    assert dataset.id in [d.id for d in client.datasets.list()]
    assert client.datasets.get(dataset.id) == dataset
    client.datasets.delete(dataset.id)
    with pytest.raises(dragoman.NotFoundError):
        client.datasets.get(dataset.id)


def test_a_file_by_its_path(client: dragoman.Client) -> None:
    by_path, by_name = client.datasets.upload(YODA), client.datasets.upload(str(YODA))
    assert by_path.id == by_name.id
    assert by_path.name == "yoda"
    assert by_path.report.tokens is not None
    with pytest.raises(IsADirectoryError):
        client.datasets.upload(Path("/"))


def test_preview_marks_what_is_trained(client: dragoman.Client) -> None:
    dataset = client.datasets.upload(YODA)
    rows = client.datasets.preview(dataset.id, n=2, config={"training": {"max_length": 64}})
    assert len(rows) == 2
    assert {segment.trained for segment in rows[0].segments} == {True, False}
    assert rows[0].tokens == sum(segment.tokens for segment in rows[0].segments)
    with pytest.raises(dragoman.InvalidError):
        client.datasets.preview(dataset.id, config={"lora": {"r": 0}})


def test_events_are_plain_values() -> None:
    assert dataclasses.asdict(dragoman.JobEvent("done", {"status": "failed"}))["id"] is None
