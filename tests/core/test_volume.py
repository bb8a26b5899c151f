import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from core.volume import Volume, flush_to_disk


def staged(volume: Volume) -> list[Path]:
    return list((volume.root / "staging").iterdir())


def test_creating_twice_does_no_harm(tmp_path: Path) -> None:
    for _ in range(2):
        volume = Volume(tmp_path / "data")
        volume.create()
    assert volume.datasets.is_dir()
    assert volume.jobs.is_dir()
    assert volume.adapters.is_dir()


def test_paths_are_absolute_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    volume = Volume(Path("data"))
    monkeypatch.chdir("/")
    assert volume.root == tmp_path / "data"
    assert volume.attempt("job-1", 2) == tmp_path / "data" / "jobs" / "job-1" / "attempt-2"


def test_the_newest_attempt_is_the_one_that_began_last(volume: Volume) -> None:
    assert not volume.newest_attempt("job-1").exists()
    for number in (1, 2, 10, 9):
        volume.attempt("job-1", number).mkdir(parents=True)
    assert volume.newest_attempt("job-1") == volume.attempt("job-1", 10)


def test_a_volume_that_is_gone_is_not_made_anew(volume: Volume) -> None:
    shutil.rmtree(volume.root)
    with pytest.raises(FileNotFoundError), volume.staged_folder():
        pass
    assert not volume.root.exists()


def test_a_full_volume_is_not_filled_by_looking(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, _: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space"):
        volume.check_writable()
    assert staged(volume) == []


def test_a_staged_folder_goes_unless_it_was_renamed(volume: Volume) -> None:
    with volume.staged_folder() as first, volume.staged_folder() as second:
        assert first != second
        (first / "file").write_text("gone")
        (second / "file").write_text("kept")
        second.rename(volume.datasets / "kept")
    assert staged(volume) == []
    assert (volume.datasets / "kept" / "file").read_text() == "kept"


def test_a_staged_folder_goes_when_its_user_fails(volume: Volume) -> None:
    def fail_half_way() -> None:
        with volume.staged_folder() as folder:
            (folder / "deep").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert staged(volume) == []


def test_what_is_taken_away_is_gone_at_once_and_for_good(volume: Volume) -> None:
    folder = volume.datasets / "ds-1"
    folder.mkdir()
    with volume.taken_away(folder):
        assert not folder.exists()
    assert not folder.exists()
    assert staged(volume) == []
    with pytest.raises(FileNotFoundError), volume.taken_away(folder):
        pass
    volume.take_away(folder)  # is there no more


def test_what_is_taken_away_comes_back_where_that_fails(volume: Volume) -> None:
    folder = volume.datasets / "ds-1"
    folder.mkdir()
    (folder / "file").write_text("kept")

    def fail_half_way() -> None:
        with volume.taken_away(folder):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (folder / "file").read_text() == "kept"
    assert staged(volume) == []


def test_nothing_is_taken_from_a_volume_that_is_gone(volume: Volume) -> None:
    shutil.rmtree(volume.root)
    with pytest.raises(FileNotFoundError):
        volume.take_away(volume.datasets / "ds-1")


def test_json_is_replaced_in_one_step(volume: Volume) -> None:
    path = volume.root / "value.json"
    volume.write_json(path, {"text": "old"})
    inode = path.stat().st_ino
    volume.write_json(path, {"text": "漢字"})

    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "漢字"}
    assert path.stat().st_ino != inode
    assert staged(volume) == []


@pytest.mark.parametrize("value", [object(), "\ud800"])
def test_json_that_cannot_be_written_leaves_the_old_file_and_nothing_else(
    volume: Volume, value: object
) -> None:
    path = volume.root / "value.json"
    volume.write_json(path, 1)
    with pytest.raises((TypeError, UnicodeEncodeError)):
        volume.write_json(path, value)
    assert path.read_text() == "1"
    assert staged(volume) == []


def test_a_writable_volume_passes_the_check_and_keeps_nothing_of_it(volume: Volume) -> None:
    volume.check_writable()
    assert staged(volume) == []


def test_a_volume_that_is_gone_fails_the_check(volume: Volume) -> None:
    (volume.root / "staging").rmdir()
    with pytest.raises(OSError, match="No such file"):
        volume.check_writable()


def test_a_folder_is_flushed_with_all_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("x")
    flushed = []
    fsync = os.fsync

    def count(handle: int) -> None:
        flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", count)
    flush_to_disk(tmp_path / "a")
    expected = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "file"]
    assert sorted(flushed) == sorted(path.stat().st_ino for path in expected)


def test_leftovers_of_killed_processes_are_swept_and_nothing_younger(volume: Volume) -> None:
    staging = volume.root / "staging"
    old_folder, old_file, young = staging / "old", staging / "old-file", staging / "young"
    (old_folder / "deep").mkdir(parents=True)
    old_file.write_text("half")
    young.mkdir()
    for path in (old_folder, old_file):
        os.utime(path, (0, 0))
    volume.sweep_staging()
    assert list(staging.iterdir()) == [young]
