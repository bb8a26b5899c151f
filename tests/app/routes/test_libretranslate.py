"""What LibreTranslate's clients call, in its shapes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import app.suggestions
from core.settings import Settings


@pytest.fixture
def suggestions(app_settings: Settings) -> Iterator[Path]:
    folder = app_settings.data_dir / "suggestions"
    yield folder
    for path in folder.iterdir():
        path.unlink()


def problem(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.json()["error"] == response.json()["detail"]
    return str(response.json()["error"])


def test_languages(client: TestClient) -> None:
    languages = {entry["code"]: entry for entry in client.get("/languages").json()}
    assert languages["lzh"] == {"code": "lzh", "name": "Literary Chinese", "targets": ["zh"]}
    assert "en-x-pirate" in languages["en"]["targets"]
    assert "fr" not in languages, "its adapter does not fit this base"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Bonjour tout le monde, comment allez-vous ?", "fr"),
        ("王怒而去，遂不复见。", "zh"),
        ("The rain has stopped.", "en"),
    ],
)
def test_detect(client: TestClient, text: str, code: str) -> None:
    as_form = client.post("/detect", data={"q": text, "api_key": ""})
    as_json = client.post("/detect", json={"q": text, "api_key": None, "more": 1})
    assert as_form.status_code == 200, as_form.text
    assert as_form.json() == as_json.json()
    found = as_form.json()
    assert found[0]["language"] == code
    confidences = [f["confidence"] for f in found]
    assert confidences == sorted(confidences, reverse=True)
    assert 50 < confidences[0] <= 100
    assert set(found[0]) == {"confidence", "language"}


def test_detect_where_there_is_nothing_to_go_by(client: TestClient) -> None:
    assert client.post("/detect", json={"q": "12, 34!"}).json() == [
        {"confidence": 0.0, "language": "en"}
    ]
    assert "q" in problem(client.post("/detect", json={}), 422)
    assert "q" in problem(client.post("/detect", json={"q": ""}), 422)
    assert "q" in problem(client.post("/detect", json={"q": ["a", "b"]}), 422)
    problem(client.post("/detect", json={"q": "x" * 2001}), 413)
    problem(client.post("/detect", content=b"{", headers={"content-type": "application/json"}), 400)
    problem(client.post("/detect", content=b"x", headers={"content-type": "text/plain"}), 415)


def suggest(client: TestClient, **body: Any) -> Any:
    asked = {"q": "I see you.", "s": "Arr, I see ye.", "source": "en", "target": "en-x-pirate"}
    return client.post("/suggest", json=asked | body)


def test_suggestions_are_kept_as_a_dataset(client: TestClient, suggestions: Path) -> None:
    response = suggest(client, s="Arr,\nye be seen.", api_key="x")
    assert (response.status_code, response.json()) == (200, {"success": True})
    form = {"q": "Go.", "s": "Sail.", "source": "auto", "target": "EN-x-pirate"}
    assert client.post("/suggest", data=form).json() == {"success": True}
    lines = (suggestions / "pirate.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert kept[0]["prompt"] == "I see you."
    assert kept[0]["completion"] == "Arr,\nye be seen."
    assert [k["adapter"] for k in kept] == ["pirate@1", "pirate@1"]
    uploaded = client.post(
        "/datasets", files={"file": ("a.jsonl", (suggestions / "pirate.jsonl").read_bytes())}
    )
    assert uploaded.status_code == 201, uploaded.text
    assert uploaded.json()["rows"] == 2


def test_suggestions_that_are_refused(client: TestClient, suggestions: Path) -> None:
    for missing in ("q", "s", "source", "target"):
        assert missing in problem(suggest(client, **{missing: None}), 422)
    assert "pirate" in problem(suggest(client, target="tlh"), 404)
    problem(suggest(client, s="x" * 2001), 413)
    problem(suggest(client, q="\x00"), 422)
    assert list(suggestions.iterdir()) == []


def test_suggestions_are_bounded(
    client: TestClient, suggestions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert suggest(client).status_code == 200
    size = (suggestions / "pirate.jsonl").stat().st_size
    monkeypatch.setattr(app.suggestions, "_MAX_FILE_BYTES", size + 1)
    full = suggest(client)
    assert "pirate" in problem(full, 503)
    assert full.json()["code"] == "suggestions_full"
    assert full.headers["Retry-After"]
    assert (suggestions / "pirate.jsonl").stat().st_size == size


def test_frontend_settings(client: TestClient, app_settings: Settings) -> None:
    shown = client.get("/frontend/settings").json()
    assert shown["charLimit"] == 2000
    assert shown["maxAlternatives"] == app_settings.max_alternatives
    assert shown["maxNewTokens"] == app_settings.max_new_tokens
    assert shown["keyRequired"] is False
    assert shown["suggestions"] is True
    assert shown["language"]["source"] == {"code": "auto", "name": "Auto Detect"}
    assert shown["language"]["target"]["code"] in {
        target for entry in client.get("/languages").json() for target in entry["targets"]
    }
