import asyncio
import zipfile
from pathlib import Path

import pytest

import dragoman
from tests.dragoman.servers import CuttingProxy


@pytest.fixture(scope="module")
def archive(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """yoda@1, exported."""
    target = tmp_path_factory.mktemp("archive") / "yoda.zip"
    with dragoman.Client(service_url) as client:
        return client.adapters.download("yoda", 1, target)


def test_what_is_in_the_box(client: dragoman.Client) -> None:
    assert {"yoda", "wenyan"} <= {adapter.name for adapter in client.adapters.list()}
    assert client.adapters.get("yoda").current == 1
    version = client.adapters.version("yoda", 1)
    assert version.ref == "yoda@1"
    assert version.seal["target"] == "en-x-yoda"
    with pytest.raises(dragoman.NotFoundError):
        client.adapters.version("yoda", 99)


def test_the_archive_is_a_peft_folder(archive: Path) -> None:
    with zipfile.ZipFile(archive) as held:
        names = {Path(name).name for name in held.namelist()}
    assert {"adapter_config.json", "adapter_model.safetensors", "dragoman.json"} <= names
    assert [p.name for p in archive.parent.iterdir()] == [archive.name]


def test_a_download_that_fails_leaves_nothing(client: dragoman.Client, tmp_path: Path) -> None:
    with pytest.raises(dragoman.NotFoundError):
        client.adapters.download("yoda", 99, tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())


def test_a_download_that_breaks_off_leaves_nothing(proxy: CuttingProxy, tmp_path: Path) -> None:
    proxy.cuts, proxy.cut_after = 2, 10_000
    with dragoman.Client(proxy.url) as client, pytest.raises(dragoman.ConnectionFailedError):
        client.adapters.download("yoda", 1, tmp_path / "x.zip")

    async def download() -> None:
        async with dragoman.AsyncClient(proxy.url) as client:
            await client.adapters.download("yoda", 1, tmp_path / "x.zip")

    with pytest.raises(dragoman.ConnectionFailedError):
        asyncio.run(download())
    assert proxy.num_cut == 2
    assert not list(tmp_path.iterdir())


def test_versions_come_rise_fall_and_go(client: dragoman.Client, archive: Path) -> None:
    first = client.adapters.import_(archive, "copied")
    second = client.adapters.import_(archive, "copied", description="again", make_current=True)
    assert (first.ref, first.current) == ("copied@1", True)
    assert (second.ref, second.current) == ("copied@2", True)
    assert client.adapters.rollback("copied").current == 1
    assert client.translate("I am tall.", adapter="copied").adapter == "copied@1"
    with pytest.raises(dragoman.DragomanError, match="no version before 1"):
        client.adapters.rollback("copied")
    assert client.adapters.promote("copied", 2).current == 2
    assert client.adapters.set_traffic("copied", {1: 0.5, 2: 0.5}).traffic == {1: 0.5, 2: 0.5}
    assert client.adapters.set_traffic("copied", {}).traffic == {}
    with pytest.raises(dragoman.ConflictError):
        client.adapters.delete("copied", 2)
    client.adapters.delete("copied", 1)
    assert client.adapters.get("copied").versions == [2]


def test_what_is_no_adapter_is_refused(client: dragoman.Client) -> None:
    with pytest.raises(dragoman.InvalidError):
        client.adapters.import_(b"no archive", "broken", filename="x.zip")


def test_the_async_client_does_the_same(service_url: str, archive: Path, tmp_path: Path) -> None:
    async def work() -> int | None:
        async with dragoman.AsyncClient(service_url) as client:
            for current in (False, True):
                await client.adapters.import_(archive, "copied-too", make_current=current)
            rolled = await client.adapters.rollback("copied-too")
            await client.adapters.download("copied-too", 1, tmp_path / "one.zip")
            return rolled.current

    assert asyncio.run(work()) == 1
    assert zipfile.is_zipfile(tmp_path / "one.zip")
