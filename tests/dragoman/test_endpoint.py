import asyncio
import inspect

import pytest

import dragoman
from tests.dragoman.servers import Reply, ScriptedServer


def test_methods_look_as_if_written_by_hand() -> None:
    with dragoman.Client() as client:
        get = client.datasets.get
        assert get.__name__ == "get"
        assert "Raises NotFoundError" in (get.__doc__ or "")
        with pytest.raises(TypeError):
            get()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            client.jobs.create("a")


def test_one_description_two_clients(scripted: ScriptedServer) -> None:
    language = {"code": "en", "name": "English", "targets": ["de"]}
    scripted.replies = [Reply(body=[language])]
    with dragoman.Client(scripted.url) as client:
        blocking = client.languages()

    async def ask() -> object:
        async with dragoman.AsyncClient(scripted.url) as client:
            answer = client.languages()
            assert inspect.isawaitable(answer)
            return await answer

    assert asyncio.run(ask()) == blocking
    assert blocking[0].targets == ["de"]


def test_ids_cannot_leave_their_place_in_the_path(scripted: ScriptedServer) -> None:
    scripted.replies = [Reply(404, {"code": "not_found", "detail": "no"})]
    with dragoman.Client(scripted.url) as client, pytest.raises(dragoman.NotFoundError):
        client.datasets.delete("../jobs?x=1#y")
    assert scripted.seen[0].path == "/datasets/..%2Fjobs%3Fx%3D1%23y"
