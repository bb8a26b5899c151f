"""The registry on a real volume: a version appears whole, never changes, and one of them is current."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.adapter_version import CONFIG_FILE, SEAL_FILE, WEIGHTS_FILE, AdapterVersion
from core.adapters import AdapterRegistry, check_adapter_name
from core.errors import InvalidError, NotFoundError
from core.volume import Volume
from tests.core.versions import publish, stage


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


def test_what_was_read_is_found_as_long_as_it_is_that(
    registry: AdapterRegistry, volume: Volume
) -> None:
    another_process = AdapterRegistry(volume)
    first = publish(another_process, volume, "yoda", "job-1")
    second = publish(another_process, volume, "yoda", "job-2")
    another_process.promote("yoda", 1)
    assert registry.find("yoda") is registry.find("yoda@1") is None, "not read before"
    assert registry.resolve("yoda") == first
    assert registry.find("yoda") == registry.find("yoda@1") == first
    another_process.promote("yoda", 2)
    assert registry.find("yoda") is None
    assert registry.resolve("yoda") == registry.find("yoda") == second
    another_process.delete("yoda", 1)
    assert registry.find("yoda@1") is None
    with pytest.raises(NotFoundError):
        registry.resolve("yoda@1")
    another_process.promote("yoda", None)
    assert registry.find("yoda") is None
    assert registry.find("yoda@2") == second


@pytest.mark.parametrize("ref", ["", "@", "@1", "nobody", "yoda@2", "yoda@x", "../yoda", "base"])
def test_what_does_not_exist_is_not_found(
    registry: AdapterRegistry, volume: Volume, ref: str
) -> None:
    publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    assert registry.find(ref) is None


def test_a_change_that_leaves_no_mark_on_the_file_is_seen(
    registry: AdapterRegistry, volume: Volume
) -> None:
    """Older kernels' timestamps stand still for 4 ms, in which ext4 gives a freed inode out again."""
    versions = [publish(registry, volume, "yoda") for _ in range(2)]
    registry.promote("yoda", 1)
    assert registry.resolve("yoda") == registry.find("yoda") == versions[0]
    current = volume.adapters / "yoda" / "current.json"
    before = current.stat()
    current.write_text(current.read_text().replace("1", "2"))
    os.utime(current, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert registry.find("yoda") == versions[1]
    assert registry.resolve("yoda") == versions[1]


def test_a_number_whose_folder_was_replaced_is_another_version(
    registry: AdapterRegistry, volume: Volume, tmp_path: Path
) -> None:
    """Not by the product; copies from a backup, or from an image, have the timestamps that they had there."""
    version = publish(registry, volume, "yoda", "mine")
    registry.promote("yoda", 1)
    assert registry.resolve("yoda@1").seal.job_id == "mine"
    mtime_ns = (version.path / SEAL_FILE).stat().st_mtime_ns
    shutil.rmtree(volume.adapters / "yoda")
    box = stage(tmp_path / "box" / "yoda", "another")
    os.utime(box / SEAL_FILE, ns=(mtime_ns, mtime_ns))
    registry.seed(tmp_path / "box")
    assert (version.path / SEAL_FILE).stat().st_mtime_ns == mtime_ns
    assert registry.find("yoda") is registry.find("yoda@1") is None
    assert registry.resolve("yoda@1").seal.job_id == "another"
    assert registry.resolve("yoda") == registry.find("yoda") == registry.find("yoda@1")


def test_links_are_followed(registry: AdapterRegistry, volume: Volume, tmp_path: Path) -> None:
    versions = volume.adapters / "yoda" / "versions"
    versions.mkdir(parents=True)
    (versions / "1").symlink_to(stage(tmp_path / "old", "old"))
    registry.promote("yoda", 1)
    assert registry.resolve("yoda").seal.job_id == "old"
    (versions / "1").unlink()
    (versions / "1").symlink_to(stage(tmp_path / "new", "new"))
    assert registry.find("yoda") is registry.find("yoda@1") is None
    assert registry.resolve("yoda").seal.job_id == "new"
    (versions / "1").unlink()
    (versions / "1").symlink_to(tmp_path / "nowhere")
    assert registry.find("yoda") is None
    with pytest.raises(NotFoundError):
        registry.resolve("yoda")


def test_a_version_replaced_and_deleted_while_it_is_resolved_hides_no_other(
    registry: AdapterRegistry, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    read = registry.version

    def replaced_meanwhile(name: str, number: int) -> AdapterVersion:
        monkeypatch.setattr(registry, "version", read)
        another_process = AdapterRegistry(volume)
        another_process.promote("yoda", 2)
        another_process.delete("yoda", 1)
        return read(name, number)

    monkeypatch.setattr(registry, "version", replaced_meanwhile)
    assert registry.resolve("yoda").version == 2


def test_a_folder_that_goes_while_it_is_read_is_not_there(
    registry: AdapterRegistry, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wenyan", "yoda"):
        publish(registry, volume, name)
    iterdir = Path.iterdir

    def gone_meanwhile(path: Path) -> Iterator[Path]:
        if path.parent.name == "yoda":
            shutil.rmtree(path.parent, ignore_errors=True)
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", gone_meanwhile)
    assert [a.name for a in registry.all()] == ["wenyan"]
    with pytest.raises(NotFoundError):
        registry.get("yoda")


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


def test_broken_seal(registry: AdapterRegistry, volume: Volume) -> None:
    version = publish(registry, volume, "yoda")
    (version.path / SEAL_FILE).write_text('{"format": 1}')
    with pytest.raises(InvalidError, match="yoda@1") as caught:
        registry.resolve("yoda@1")
    assert caught.value.code == "adapter_broken"


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


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": "x"}', '{"version": 7}', '{"version": 1e999}']
)
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
