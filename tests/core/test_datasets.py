from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from core.datasets import (
    RECORD_FILE,
    ROWS_FILE,
    Dataset,
    DatasetReport,
    DatasetStore,
    Exchange,
    Row,
    RowWriter,
)
from core.errors import NotFoundError
from core.volume import Volume

ROWS = [
    Row(prompt="a", completion="b"),
    Row(prompt="漢\u2028字", completion="x\ny"),
    Row(prompt="c", completion="d", further=(Exchange(prompt="e", completion="f"),)),
]


@pytest.fixture
def store(volume: Volume) -> DatasetStore:
    return DatasetStore(volume)


def dataset(number: int = 1, name: str = "tea") -> Dataset:
    return Dataset(
        id=f"ds-{number:016x}",
        name=name,
        format="csv",
        rows=len(ROWS),
        columns=["prompt", "completion"],
        mapping={"source": "prompt", "target": "completion"},
        sha256=f"{number:064x}",
        created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number),
        report=DatasetReport(),
        preview=ROWS,
    )


def save(volume: Volume, record: Dataset) -> Dataset:
    with volume.staged_folder() as staged:
        with RowWriter(staged / ROWS_FILE) as writer:
            writer.write(ROWS[:1])
            writer.write(ROWS[1:])
        return DatasetStore(volume).save(record, staged)


def test_what_is_saved_is_there(volume: Volume, store: DatasetStore) -> None:
    record = save(volume, dataset())

    assert record == dataset()
    assert store.get(record.id) == record
    assert list(store.rows(record.id)) == ROWS
    assert list(store.prompts(record.id)) == [row.prompt for row in ROWS]
    assert store.rows_path(record.id).parent.parent == volume.datasets


def test_the_rows_are_a_file_that_datasets_maps_into_memory(
    volume: Volume, store: DatasetStore
) -> None:
    record = save(volume, dataset())
    mapped = datasets.Dataset.from_file(str(store.rows_path(record.id)))

    assert mapped.column_names == ["prompt", "completion", "further"]
    assert [Row.model_validate(row) for row in mapped] == ROWS


def test_the_hash_is_of_the_rows_and_not_of_how_they_were_written(tmp_path: Path) -> None:
    def write(name: str, *batches: list[Row]) -> str:
        with RowWriter(tmp_path / name) as writer:
            for batch in batches:
                writer.write(batch)
        return writer.sha256

    at_once = write("a", ROWS)
    assert write("b", *([row] for row in ROWS)) == at_once
    assert write("c", ROWS[:2]) != at_once
    assert write("d", [*ROWS[:2], ROWS[2].model_copy(update={"further": ()})]) != at_once


def test_rows_are_streamed(volume: Volume, store: DatasetStore) -> None:
    with volume.staged_folder() as staged:
        with RowWriter(staged / ROWS_FILE) as writer:
            for _ in range(300):
                writer.write([Row(prompt="p" * 10_000, completion="c" * 10_000)] * 10)
        record = DatasetStore(volume).save(dataset(), staged)
    before = pa.total_allocated_bytes()
    rows = store.rows(record.id)
    assert len(next(rows).prompt) == 10_000
    assert pa.total_allocated_bytes() - before < 5_000_000
    assert sum(1 for _ in rows) == 2999


def test_saving_again_gives_the_first_record(volume: Volume, store: DatasetStore) -> None:
    save(volume, dataset(name="first"))
    assert save(volume, dataset(name="second")).name == "first"
    assert [d.name for d in store.all()] == ["first"]
    assert list((volume.root / "staging").iterdir()) == []


def test_saving_what_is_deleted_at_that_moment(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(volume, dataset(name="first"))
    get, deleted = DatasetStore.get, []

    def delete_first(store: DatasetStore, dataset_id: str) -> Dataset:
        if not deleted:
            deleted.append(dataset_id)
            store.delete(dataset_id)
        return get(store, dataset_id)

    monkeypatch.setattr(DatasetStore, "get", delete_first)
    assert save(volume, dataset(name="second")).name == "second"
    assert deleted
    assert get(DatasetStore(volume), dataset().id).name == "second"
    assert list((volume.root / "staging").iterdir()) == []


def test_saving_and_deleting_at_once(volume: Volume, store: DatasetStore) -> None:
    def save_often() -> list[str]:
        return [save(volume, dataset()).id for _ in range(40)]

    def delete_often() -> None:
        while not all(saver.done() for saver in savers):
            with suppress(NotFoundError):
                store.delete(dataset().id)

    with ThreadPoolExecutor(4) as pool:
        savers = [pool.submit(save_often) for _ in range(2)]
        deleters = [pool.submit(delete_often) for _ in range(2)]
        assert [set(saver.result()) for saver in savers] == [{dataset().id}] * 2
        for deleter in deleters:
            deleter.result()
    assert list((volume.root / "staging").iterdir()) == []


@pytest.mark.parametrize("has_record", [True, False])
def test_saving_in_place_of_a_spoilt_one(
    volume: Volume, store: DatasetStore, has_record: bool
) -> None:
    record = volume.datasets / save(volume, dataset()).id / RECORD_FILE
    record.write_text("{") if has_record else record.unlink()
    assert save(volume, dataset(name="again")).name == "again"
    assert store.get(dataset().id).name == "again"
    assert list(store.rows(dataset().id)) == ROWS


def test_the_newest_comes_first_and_other_things_are_passed_over(
    volume: Volume, store: DatasetStore
) -> None:
    assert store.all() == []
    for number in (2, 3, 1):
        save(volume, dataset(number))
    (volume.datasets / "lost+found").mkdir()
    (volume.datasets / "ds-empty").mkdir()
    (volume.datasets / "README").write_text("not a dataset")

    assert [d.id for d in store.all()] == [dataset(n).id for n in (3, 2, 1)]


def test_what_is_deleted_is_gone_and_can_be_saved_again(
    volume: Volume, store: DatasetStore
) -> None:
    record = save(volume, dataset())
    store.delete(record.id)

    assert store.all() == []
    assert list((volume.root / "staging").iterdir()) == []
    with pytest.raises(NotFoundError):
        store.delete(record.id)
    save(volume, dataset(name="again"))
    assert store.get(record.id).name == "again"


@pytest.mark.parametrize(
    "dataset_id",
    ["ds-0", "", ".", "..", "../adapters", "a/b", "a\\b", "a\0b", "ä", "-", "d" * 5000, "ds 1"],
)
def test_what_is_not_there_is_not_found(store: DatasetStore, dataset_id: str) -> None:
    for action in (store.get, store.delete):
        with pytest.raises(NotFoundError) as caught:
            action(dataset_id)
        assert caught.value.code == "dataset_not_found"
        assert len(caught.value.message) < 200


def test_a_spoilt_record_hides_no_other(volume: Volume, store: DatasetStore) -> None:
    spoilt, sound = save(volume, dataset(1)), save(volume, dataset(2))
    (volume.datasets / spoilt.id / RECORD_FILE).write_text("{")
    (volume.datasets / "notes").touch()
    assert store.all() == [sound]
    for dataset_id in (spoilt.id, "notes", "x" * 300):
        with pytest.raises(NotFoundError):
            store.get(dataset_id)
