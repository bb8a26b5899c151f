"""Checkpoints come and go while they are looked for; what is not whole is not there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.adapter_version import JOB_PREFIX, SEAL_FILE
from core.adapters import check_adapter_name
from core.checkpoints import RECORD_FILE, CheckpointRecord, find_checkpoints
from core.errors import InvalidError
from core.volume import Volume
from tests.seals import make_seal

JOB = "job-0123456789abcdef"
SEAL = make_seal(job_id=JOB).model_dump_json()

Write = Callable[..., Path]


@pytest.fixture
def write(volume: Volume) -> Write:
    def write(name: str, step: int, *, is_sealed: bool = True) -> Path:
        folder = volume.jobs / JOB / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"x" * 10)
        if is_sealed:
            (folder / SEAL_FILE).write_text(SEAL)
        files = {p.name: p.stat().st_size for p in folder.iterdir()}
        record = CheckpointRecord(step=step, files=files)
        (folder / RECORD_FILE).write_text(record.model_dump_json())
        return folder

    return write


def refs(volume: Volume, job_id: str = JOB) -> list[str]:
    return [c.ref.removeprefix(f"{JOB_PREFIX}{JOB}") for c in find_checkpoints(volume, job_id)]


def test_the_furthest_first(volume: Volume, write: Write) -> None:
    assert refs(volume) == []
    for step in (9, 100, 11):
        write(f"step-{step}", step)
    assert refs(volume) == ["@100", "@11", "@9"]
    write("trained", 120)
    found = find_checkpoints(volume, JOB)
    assert [c.version for c in found] == [120, 100, 11, 9]
    assert all(c.is_checkpoint and c.seal.job_id == JOB for c in found)
    assert found[0].path.name == "trained"


def test_what_is_not_whole_is_not_there(volume: Volume, write: Write) -> None:
    write("step-1", 1)
    (write("step-2", 2) / "weights").write_bytes(b"torn")
    (write("step-3", 3) / "weights").unlink()
    write("step-4", 4, is_sealed=False)  # of a worker that sealed versions alone
    (write("step-5", 5) / RECORD_FILE).write_text("{")
    (write("step-6", 6) / SEAL_FILE).write_text("x" * len(SEAL))
    (volume.jobs / JOB / "checkpoints" / "step-junk").mkdir()
    (volume.jobs / JOB / "checkpoints" / "step-7").write_text("a file")
    assert refs(volume) == ["@1"]
    volume.remove_checkpoints(JOB)
    assert refs(volume) == []
    assert not any((volume.root / "staging").iterdir())


@pytest.mark.parametrize("job_id", ["", ".", "..", f"../jobs/{JOB}", "a/b", "a\0b", "*", "x" * 300])
def test_no_id_leads_elsewhere(volume: Volume, write: Write, job_id: str) -> None:
    write("step-1", 1)
    assert refs(volume, job_id) == []


def test_no_adapter_has_such_a_name() -> None:
    with pytest.raises(InvalidError):
        check_adapter_name(f"{JOB_PREFIX}{JOB}")


def test_a_full_volume_is_emptied_all_the_same(volume: Volume, write: Write) -> None:
    """Moving needs a new folder, for which there may be no room."""
    folder = write("step-1", 1)
    staging = volume.root / "staging"
    staging.rmdir()
    staging.write_text("no folder can be made here")
    volume.remove_folder(folder)
    assert not folder.exists()
