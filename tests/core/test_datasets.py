import json
from datetime import UTC, datetime, timedelta

import pytest

from core.datasets import RECORD_FILE, ROWS_FILE, Dataset, DatasetReport, DatasetStore, Row
from core.errors import NotFoundError
from core.volume import Volume

ROWS = [Row(prompt="a", completion="b"), Row(prompt="漢\u2028字", completion="x\ny")]


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
        lines = (json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in ROWS)
        (staged / ROWS_FILE).write_text("".join(lines), encoding="utf-8")
        return DatasetStore(volume).save(record, staged)


def test_what_is_saved_is_there(volume: Volume, store: DatasetStore) -> None:
    record = save(volume, dataset())

    assert record == dataset()
    assert store.get(record.id) == record
    assert list(store.rows(record.id)) == ROWS
    assert store.rows_path(record.id).parent.parent == volume.datasets


def test_saving_again_gives_the_first_record(volume: Volume, store: DatasetStore) -> None:
    save(volume, dataset(name="first"))
    assert save(volume, dataset(name="second")).name == "first"
    assert [d.name for d in store.all()] == ["first"]
    assert list((volume.root / "staging").iterdir()) == []


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
