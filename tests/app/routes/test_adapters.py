"""What adapters and languages there are."""

import shutil

from fastapi.testclient import TestClient

from core.adapters import SEAL_FILE
from core.settings import Settings


def test_list(client: TestClient) -> None:
    client.post("/translate", json={"q": "Hello.", "adapter": "german", "max_new_tokens": 1})
    adapters = {a["name"]: a for a in client.get("/adapters").json()}
    assert {"pirate", "modern", "german", "foreign"} <= set(adapters)
    assert adapters["german"] == {
        "name": "german",
        "source": "de",
        "target": "en",
        "current": 1,
        "versions": [1],
        "resident": True,
        "description": "de to en",
    }
    assert adapters["foreign"]["resident"] is False


def test_one_and_its_version(client: TestClient) -> None:
    assert client.get("/adapters/modern").json()["target"] == "zh"
    version = client.get("/adapters/modern/versions/1").json()
    assert version["seal"]["stop_token_ids"] == [3, 7]
    assert version["ref"] == "modern@1"
    assert "path" not in version, "where files lie is nobody's business"


def test_unknown_ones(client: TestClient) -> None:
    for path in (
        "nobody",
        "modern/versions/2",
        "..%2Fmodern",
        "modern/versions/0",
        "modern/versions/" + "9" * 300,
    ):
        response = client.get(f"/adapters/{path}")
        assert response.status_code == 404, path
        assert response.headers["content-type"] == "application/problem+json"
    assert client.get("/adapters/modern/versions/x").status_code == 422


def test_languages_in_libretranslates_shape(client: TestClient) -> None:
    languages = {entry["code"]: entry for entry in client.get("/languages").json()}
    assert languages["lzh"] == {"code": "lzh", "name": "Literary Chinese", "targets": ["zh"]}
    assert "en-x-pirate" in languages["en"]["targets"]
    assert "fr" not in languages, "its adapter does not fit this base"


def test_a_broken_adapter_hides_no_other(client: TestClient, app_settings: Settings) -> None:
    adapters = app_settings.data_dir / "adapters"
    languages = client.get("/languages").json()
    shutil.copytree(adapters / "pirate", adapters / "broken")
    try:
        (adapters / "broken" / "versions" / "1" / SEAL_FILE).write_text("{")
        assert "pirate" in [a["name"] for a in client.get("/adapters").json()]
        assert client.get("/languages").json() == languages
        asked = client.post("/translate", json={"q": "x", "adapter": "broken"})
        assert (asked.status_code, asked.json()["code"]) == (422, "adapter_broken")
    finally:
        shutil.rmtree(adapters / "broken")
