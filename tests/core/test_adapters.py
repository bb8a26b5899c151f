"""The registry on a real volume: a version appears whole, never changes, and one of them is current."""

import errno
import json
import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from core.adapters import (
    CONFIG_FILE,
    SEAL_FILE,
    WEIGHTS_FILE,
    AdapterRegistry,
    AdapterVersion,
    check_adapter_name,
    content_sha256,
)
from core.errors import ConflictError, InvalidError, NotFoundError, ServiceError
from core.volume import Volume
from tests.seals import make_seal


@pytest.fixture
def registry(volume: Volume) -> AdapterRegistry:
    return AdapterRegistry(volume)


def stage(folder: Path, job_id: str = "job") -> Path:
    """A complete version folder, but for the weights being weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text("{}")
    (folder / WEIGHTS_FILE).write_bytes(job_id.encode())
    seal = make_seal(job_id=job_id, content_sha256=content_sha256(folder))
    (folder / SEAL_FILE).write_text(seal.model_dump_json())
    return folder


def publish(
    registry: AdapterRegistry, volume: Volume, name: str, job_id: str = "job"
) -> AdapterVersion:
    with volume.staged_folder() as staged:
        return registry.publish(name, stage(staged, job_id))


@pytest.mark.parametrize("name", ["a", "yoda", "yoda-2", "en_de", "0", "x" * 63])
def test_good_names(name: str) -> None:
    assert check_adapter_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", "-a", "_a", "Yoda", "a b", "a@1", "é", "a\n", "x" * 64, "base"],
)
def test_bad_names(registry: AdapterRegistry, volume: Volume, name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_adapter_name(name)
    assert caught.value.code == "adapter_name_invalid"
    with pytest.raises(InvalidError):
        publish(registry, volume, name)
    assert list(volume.adapters.iterdir()) == []


def test_publish_and_resolve(registry: AdapterRegistry, volume: Volume) -> None:
    first = publish(registry, volume, "yoda", "job-1")
    second = publish(registry, volume, "yoda", "job-2")
    assert (first.ref, second.ref) == ("yoda@1", "yoda@2")
    assert first.seal.job_id == "job-1"
    assert sorted(p.name for p in second.path.iterdir()) == sorted(
        [CONFIG_FILE, WEIGHTS_FILE, SEAL_FILE]
    )
    adapter = registry.get("yoda")
    assert (adapter.versions, adapter.current) == ([1, 2], None)
    with pytest.raises(NotFoundError):
        registry.resolve("yoda")  # none is current yet

    registry.promote("yoda", 1)
    assert registry.resolve("yoda") == first
    assert registry.resolve("yoda@2") == second
    registry.promote("yoda", 2)
    assert registry.resolve("yoda") == second
    assert [a.name for a in registry.all()] == ["yoda"]


@pytest.mark.parametrize(
    "ref",
    ["nobody", "yoda@3", "yoda@0", "yoda@01", "yoda@-1", "yoda@x", "../yoda", "", "@1", "Yoda"],
)
def test_what_does_not_exist(registry: AdapterRegistry, volume: Volume, ref: str) -> None:
    publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    exists = "yoda@1$" if ref.startswith("yoda@") else "yoda, base$"
    with pytest.raises(NotFoundError, match=f"there are: {exists}") as caught:
        registry.resolve(ref)
    assert caught.value.code == "adapter_not_found"
    assert caught.value.extra == {"adapters": ["yoda"]}


def test_what_was_resolved_is_found_as_long_as_it_is_that(
    registry: AdapterRegistry, volume: Volume
) -> None:
    first = publish(registry, volume, "yoda", "job-1")
    second = publish(registry, volume, "yoda", "job-2")
    registry.promote("yoda", 1)
    assert registry.find("yoda") is registry.find("yoda@1") is None, "not asked before"
    assert (registry.resolve("yoda"), registry.resolve("yoda@1")) == (first, first)
    assert (registry.find("yoda"), registry.find("yoda@1")) == (first, first)
    another_process = AdapterRegistry(volume)
    another_process.promote("yoda", 2)
    assert registry.find("yoda") is None
    assert registry.resolve("yoda") == registry.find("yoda") == second
    another_process.delete("yoda", 1)
    assert registry.find("yoda@1") is None
    with pytest.raises(NotFoundError):
        registry.resolve("yoda@1")
    another_process.promote("yoda", None)
    assert registry.find("yoda") is None


def test_what_a_canary_draws_is_not_found_but_drawn_again(
    registry: AdapterRegistry, volume: Volume
) -> None:
    versions = [publish(registry, volume, "yoda") for _ in range(2)]
    registry.promote("yoda", 1)
    assert registry.resolve("yoda") == registry.find("yoda") == versions[0]
    registry.set_traffic("yoda", {2: 1.0})
    assert registry.find("yoda") is None
    assert registry.resolve("yoda") == versions[1]
    assert registry.find("yoda") is None
    registry.set_traffic("yoda", {})
    assert registry.resolve("yoda") == registry.find("yoda") == versions[0]


def test_a_change_while_it_is_resolved_is_seen(
    registry: AdapterRegistry, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [publish(registry, volume, "yoda") for _ in range(2)]
    registry.promote("yoda", 1)
    read = registry.version

    def promoted_meanwhile(name: str, number: int) -> AdapterVersion:
        monkeypatch.setattr(registry, "version", read)
        AdapterRegistry(volume).promote("yoda", 2)
        return read(name, number)

    monkeypatch.setattr(registry, "version", promoted_meanwhile)
    assert registry.resolve("yoda") == versions[0]
    assert registry.find("yoda") is None
    assert registry.resolve("yoda") == registry.find("yoda") == versions[1]


def test_promoting_what_does_not_exist(registry: AdapterRegistry, volume: Volume) -> None:
    publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    with pytest.raises(NotFoundError):
        registry.promote("yoda", 2)
    assert registry.get("yoda").current == 1


def test_many_publishers_at_once(registry: AdapterRegistry, volume: Volume) -> None:
    published: list[AdapterVersion] = []

    def run(number: int) -> None:
        published.extend(publish(registry, volume, "yoda", f"{number}-{i}") for i in range(5))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get("yoda").versions == list(range(1, 31))
    assert len({v.version for v in published}) == 30
    for version in published:  # each got the folder that it staged
        assert (version.path / WEIGHTS_FILE).read_bytes() == version.seal.job_id.encode()


def test_content_hash_sees_what_peft_reads(tmp_path: Path) -> None:
    folder = stage(tmp_path / "a")
    before = content_sha256(folder)
    (folder / "README.md").write_text("words")
    assert content_sha256(folder) == before
    (folder / CONFIG_FILE).write_text('{"r": 2}')
    assert content_sha256(folder) != before


def test_broken_seal(registry: AdapterRegistry, volume: Volume) -> None:
    version = publish(registry, volume, "yoda")
    (version.path / SEAL_FILE).write_text('{"format": 1}')
    with pytest.raises(InvalidError, match="yoda@1") as caught:
        registry.resolve("yoda@1")
    assert caught.value.code == "adapter_broken"


def test_seal_with_members_of_a_later_release(registry: AdapterRegistry, volume: Volume) -> None:
    version = publish(registry, volume, "yoda")
    seal = json.loads((version.path / SEAL_FILE).read_text())
    (version.path / SEAL_FILE).write_text(json.dumps(seal | {"from_the_future": 1}))
    assert registry.resolve("yoda@1").seal.job_id == "job"


def test_what_does_not_belong_there_is_passed_over(
    registry: AdapterRegistry, volume: Volume
) -> None:
    publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    (volume.adapters / "yoda" / "versions" / ".DS_Store").touch()
    (volume.adapters / "yoda" / "versions" / "2").touch()
    (volume.adapters / "yoda" / "versions" / "01").mkdir()
    (volume.adapters / "lost+found").mkdir()
    (volume.adapters / "notes").touch()
    assert [a.name for a in registry.all()] == ["yoda"]
    assert registry.resolve("yoda").version == 1
    for ref in ("notes", "notes@1", "yoda@2"):
        with pytest.raises(NotFoundError):
            registry.resolve(ref)
    with pytest.raises(NotFoundError):
        registry.version("yoda", 10**300)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "x"}', '{"version": 7}'])
def test_an_unreadable_current_is_none(
    registry: AdapterRegistry, volume: Volume, content: str
) -> None:
    publish(registry, volume, "yoda")
    (volume.adapters / "yoda" / "current.json").write_text(content)
    assert registry.get("yoda").current is None
    with pytest.raises(NotFoundError):
        registry.resolve("yoda")
    registry.promote("yoda", 1)
    assert registry.resolve("yoda").version == 1


def test_two_servers_seed_one_volume(
    registry: AdapterRegistry, volume: Volume, tmp_path: Path
) -> None:
    stage(tmp_path / "box" / "yoda")
    threads = [threading.Thread(target=registry.seed, args=(tmp_path / "box",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get("yoda").versions == [1]
    assert registry.resolve("yoda").version == 1
    assert list((volume.root / "staging").iterdir()) == []


def test_seed(registry: AdapterRegistry, volume: Volume, tmp_path: Path) -> None:
    stage(tmp_path / "box" / "yoda")
    stage(tmp_path / "box" / "wenyan")
    (tmp_path / "box" / "notes").mkdir()
    publish(registry, volume, "yoda", "mine")
    assert registry.seed(tmp_path / "box") == ["wenyan"]
    assert registry.resolve("wenyan").version == 1
    assert registry.resolve("yoda@1").seal.job_id == "mine"
    assert registry.seed(tmp_path / "box") == []
    assert (tmp_path / "box" / "wenyan" / SEAL_FILE).is_file()


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


def test_a_canary(registry: AdapterRegistry, volume: Volume) -> None:
    for _ in range(3):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    registry.set_traffic("yoda", {1: 0.8, 2: 0.2, 3: 0.0})
    assert registry.get("yoda").traffic == {1: 0.8, 2: 0.2}
    drawn = [registry.resolve("yoda").version for _ in range(500)]
    assert 50 < drawn.count(2) < 150
    assert drawn.count(1) + drawn.count(2) == 500
    assert registry.resolve("yoda@3").version == 3
    registry.promote("yoda", 1)
    assert registry.get("yoda").traffic == {}
    assert {registry.resolve("yoda").version for _ in range(50)} == {1}


def test_a_canary_ends_in_the_step_that_changes_the_current_version(
    registry: AdapterRegistry, volume: Volume
) -> None:
    for _ in range(2):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    registry.set_traffic("yoda", {1: 0.5, 2: 0.5})
    kept = (volume.adapters / "yoda" / "traffic.json").read_bytes()
    registry.promote("yoda", 2)
    # As if the process had died before it could remove the weights.
    (volume.adapters / "yoda" / "traffic.json").write_bytes(kept)
    assert registry.get("yoda").traffic == {}
    assert {registry.resolve("yoda").version for _ in range(50)} == {2}


@pytest.mark.parametrize(
    "weights",
    [{1: 0.5}, {1: 0.5, 2: 0.6}, {1: 1.5, 2: -0.5}, {1: float("nan")}, {1: float("inf")}, {1: 0.0}],
)
def test_weights_that_do_not_come_to_one(
    registry: AdapterRegistry, volume: Volume, weights: dict[int, float]
) -> None:
    for _ in range(2):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    with pytest.raises(InvalidError) as caught:
        registry.set_traffic("yoda", weights)
    assert caught.value.code == "traffic_invalid"
    with pytest.raises(NotFoundError):
        registry.set_traffic("yoda", {1: 0.5, 9: 0.5})
    assert registry.get("yoda").traffic == {}


@pytest.mark.parametrize("content", ["", "[]", '{"weights": {"x": 1}}', '{"weights": {}}', "null"])
def test_unreadable_weights_are_none(
    registry: AdapterRegistry, volume: Volume, content: str
) -> None:
    publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    (volume.adapters / "yoda" / "traffic.json").write_text(content)
    assert registry.resolve("yoda").version == 1


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


def test_what_is_not_there_is_told_with_what_is(registry: AdapterRegistry, volume: Volume) -> None:
    for name in ("old", "yoda", "yoda"):
        publish(registry, volume, name)
    with pytest.raises(NotFoundError, match="'nobody' does not exist; there are: old, yoda, base"):
        registry.resolve("nobody")
    with pytest.raises(NotFoundError, match="'yoda@3' does not exist; there are: yoda@1, yoda@2"):
        registry.resolve("yoda@3")
    with pytest.raises(
        NotFoundError, match=r"'yoda' has no current version.*yoda@1, yoda@2"
    ) as caught:
        registry.resolve("yoda")
    assert caught.value.code == "adapter_not_found"
