"""A version goes by one rename, unless it is in use; its number does not come back."""

import errno
import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from core.adapter_version import SEAL_FILE, WEIGHTS_FILE
from core.adapters import AdapterRegistry
from core.errors import ConflictError, NotFoundError, ServiceError
from core.volume import Volume
from tests.core.versions import publish


def test_a_deleted_number_is_not_given_out_again(registry: AdapterRegistry, volume: Volume) -> None:
    for job in ("one", "two", "three"):
        publish(registry, volume, "yoda", job)
    registry.promote("yoda", 1)
    registry.delete("yoda", 3)
    registry.delete("yoda", 2)
    assert registry.get("yoda").versions == [1]
    assert publish(registry, volume, "yoda").version == 4
    for number in (3, 0, 5):
        with pytest.raises(NotFoundError):
            registry.delete("yoda", number)
    with pytest.raises(NotFoundError):
        registry.delete("../yoda", 1)
    assert list((volume.root / "staging").iterdir()) == []


def test_numbers_deleted_before_are_not_given_out_again(
    registry: AdapterRegistry, volume: Volume
) -> None:
    """Their tombstones lay in a folder of their own once."""
    publish(registry, volume, "yoda")
    (volume.adapters / "yoda" / "deleted").mkdir()
    (volume.adapters / "yoda" / "deleted" / "7").touch()
    assert publish(registry, volume, "yoda").version == 8


def test_a_full_volume_can_be_made_room_on(
    registry: AdapterRegistry, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)

    def no_space(path: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    # On ext4 a folder takes a block, and so does what is written; an empty file takes none.
    for name in ("mkdir", "write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, no_space)
    registry.delete("yoda", 2)
    registry.delete("yoda", 3)
    assert registry.get("yoda").versions == [1]
    assert list((volume.root / "staging").iterdir()) == []
    with pytest.raises(ConflictError):
        registry.delete("yoda", 1)
    monkeypatch.undo()
    assert publish(registry, volume, "yoda").version == 4


def test_a_version_made_current_while_it_is_deleted_stays(
    registry: AdapterRegistry, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    taken_away = volume.taken_away

    def promoted_before(path: Path) -> AbstractContextManager[None]:
        registry.promote("yoda", 2)
        return taken_away(path)

    monkeypatch.setattr(volume, "taken_away", promoted_before)
    with pytest.raises(ConflictError):
        registry.delete("yoda", 2)
    assert registry.resolve("yoda").version == 2
    assert (registry.resolve("yoda").path / WEIGHTS_FILE).is_file()
    assert list((volume.root / "staging").iterdir()) == []


def test_what_is_in_use_is_not_deleted(registry: AdapterRegistry, volume: Volume) -> None:
    for _ in range(3):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    registry.set_traffic("yoda", {1: 0.5, 2: 0.5})
    for number in (1, 2):
        with pytest.raises(ConflictError, match=f"yoda@{number}") as caught:
            registry.delete("yoda", number)
        assert caught.value.code == "version_in_use"
    registry.set_traffic("yoda", {})
    registry.delete("yoda", 2)
    registry.promote("yoda", None)
    with pytest.raises(NotFoundError):
        registry.resolve("yoda")
    registry.delete("yoda", 1)
    registry.delete("yoda", 3)
    with pytest.raises(NotFoundError):
        registry.get("yoda")
    assert publish(registry, volume, "yoda").version == 4


def test_a_broken_version_can_be_deleted(registry: AdapterRegistry, volume: Volume) -> None:
    (publish(registry, volume, "yoda").path / SEAL_FILE).write_text("{")
    registry.delete("yoda", 1)
    assert registry.all() == []


def test_promoting_and_deleting_at_once_never_leaves_a_missing_version_current(
    registry: AdapterRegistry, volume: Volume
) -> None:
    publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    for _ in range(20):
        number = publish(registry, volume, "yoda").version
        outcomes: list[str] = []

        def attempt(action: str, number: int = number, outcomes: list[str] = outcomes) -> None:
            try:
                getattr(registry, action)("yoda", number)
                outcomes.append(action)
            except ServiceError:
                pass

        threads = [threading.Thread(target=attempt, args=(a,)) for a in ("promote", "delete")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        current = registry.get("yoda").current
        assert current is not None
        assert registry.resolve("yoda").version == current
        assert ("delete" in outcomes) == (number not in registry.get("yoda").versions)
        registry.promote("yoda", 1)
