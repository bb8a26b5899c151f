"""What adapters and languages there are."""

from fastapi.testclient import TestClient


def test_list(client: TestClient) -> None:
    client.post("/translate", json={"q": "Hello.", "adapter": "german", "max_new_tokens": 1})
    adapters = {a["name"]: a for a in client.get("/adapters").json()}
    assert set(adapters) == {"pirate", "modern", "german", "foreign"}
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
    for path in ("nobody", "modern/versions/2", "..%2Fmodern", "modern/versions/0"):
        response = client.get(f"/adapters/{path}")
        assert response.status_code == 404, path
        assert response.headers["content-type"] == "application/problem+json"
    assert client.get("/adapters/modern/versions/x").status_code == 422


def test_languages_in_libretranslates_shape(client: TestClient) -> None:
    languages = {entry["code"]: entry for entry in client.get("/languages").json()}
    assert languages["lzh"] == {"code": "lzh", "name": "Literary Chinese", "targets": ["zh"]}
    assert languages["en"]["targets"] == ["en-x-pirate"]
    assert "fr" not in languages, "its adapter does not fit this base"
