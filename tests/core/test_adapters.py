"""The registry on a real volume: a version appears whole, never changes, and one of them is current."""

import threading
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
