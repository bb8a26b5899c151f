"""What adapters and languages there are."""

import io
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from core.adapter_version import CONFIG_FILE, SEAL_FILE, WEIGHTS_FILE
from core.adapters import AdapterRegistry
from core.base_model import EMBEDDED
from core.settings import Settings
from core.volume import Volume
from tests.app.conftest import publish

TEXT = "The rain has stopped and the river is quiet."


@pytest.fixture
def line(app_settings: Settings, tmp_path: Path) -> Iterator[AdapterRegistry]:
    """An adapter `line` with three versions; the third is current. The second one changes nothing."""
    volume = Volume(app_settings.data_dir)
    registry = AdapterRegistry(volume)
    for number, box in enumerate(("pirate", "german", "modern")):
        source = volume.adapters / box / "versions" / "1"
        folder = shutil.copytree(source, tmp_path / str(number))
        publish(registry, folder, "line", "en", "en-x-line")
    yield registry
    shutil.rmtree(volume.adapters / "line")


def problem(response: Any, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    return str(response.json()["detail"])


def answering(client: TestClient, adapter: str = "line", **body: Any) -> Any:
    asked = {"q": TEXT, "adapter": adapter, "max_new_tokens": 3} | body
    response = client.post("/translate", json=asked)
    assert response.status_code == 200, response.text
    return response.json()["adapter"]


def test_list(client: TestClient) -> None:
    client.post("/translate", json={"q": "Hello.", "adapter": "german", "max_new_tokens": 1})
    adapters = {a["name"]: a for a in client.get("/adapters").json()}
    assert {"pirate", "modern", "german", "foreign"} <= set(adapters)
    assert adapters["german"] == {
        "name": "german",
        "source": "de",
        "target": "en",
        "current": 1,
        "traffic": {},
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


@pytest.mark.usefixtures("line")
def test_roll_back_and_promote(client: TestClient) -> None:
    assert answering(client) == "line@3"
    rolled_back = client.put("/adapters/line/current", json={"version": 1})
    assert (rolled_back.status_code, rolled_back.json()["current"]) == (200, 1)
    assert answering(client) == "line@1"
    assert answering(client, adapter="line@3") == "line@3"
    assert client.put("/adapters/line/current", json={"version": 3}).json()["current"] == 3
    assert answering(client, adapter=None, source="en", target="en-x-line") == "line@3"


@pytest.mark.usefixtures("line")
def test_an_adapter_can_be_retired(client: TestClient) -> None:
    retired = client.put("/adapters/line/current", json={"version": None})
    assert (retired.status_code, retired.json()["current"]) == (200, None)
    gone = client.post("/translate", json={"q": TEXT, "adapter": "line"})
    problem(gone, 404, "adapter_not_found")
    assert answering(client, adapter="line@2") == "line@2"
    for number in (1, 2, 3):
        assert client.delete(f"/adapters/line/versions/{number}").status_code == 204
    assert client.get("/adapters/line").status_code == 404


@pytest.mark.usefixtures("line")
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"version": 9}, 404, "adapter_not_found"),
        ({"version": 0}, 422, "invalid"),
        ({"version": "1"}, 422, "invalid"),
        ({"version": True}, 422, "invalid"),
        ({"version": 1, "force": True}, 422, "invalid"),
        ({}, 422, "invalid"),
    ],
)
def test_what_cannot_be_made_current(
    client: TestClient, body: dict[str, Any], status: int, code: str
) -> None:
    problem(client.put("/adapters/line/current", json=body), status, code)
    assert client.get("/adapters/line").json()["current"] == 3
    problem(client.put("/adapters/nobody/current", json={"version": 1}), 404, "adapter_not_found")


@pytest.mark.usefixtures("line")
@pytest.mark.parametrize("path", ["current", "traffic"])
def test_a_thousand_faults_are_told_once(client: TestClient, path: str) -> None:
    few = client.put(f"/adapters/line/{path}", json={f"v{i}": 1 for i in range(100)})
    problem(few, 422, "invalid")
    assert len(few.json()["errors"]) >= 100
    many = client.put(f"/adapters/line/{path}", json={f"v{i}": 1 for i in range(150_000)})
    problem(many, 422, "invalid")
    assert many.json()["errors"] == [{"loc": ["body"], "msg": "at most 100 fields are accepted"}]
    assert many.json()["detail"].endswith("(got a dict of 150000)")


def test_a_version_for_another_base_is_not_made_current(client: TestClient) -> None:
    refused = client.put("/adapters/foreign/current", json={"version": 1})
    problem(refused, 422, "adapter_for_other_base")
    problem(client.put("/adapters/foreign/traffic", json={"1": 1}), 422, "adapter_for_other_base")


@pytest.mark.usefixtures("line")
def test_a_canary_divides_the_traffic(client: TestClient) -> None:
    started = client.put("/adapters/line/traffic", json={"1": 0.5, "2": 0.5})
    assert started.status_code == 200, started.text
    assert started.json()["traffic"] == {"1": 0.5, "2": 0.5}
    assert started.json()["current"] == 3
    seen = {answering(client) for _ in range(20)}
    assert seen == {"line@1", "line@2"}
    pair = {answering(client, adapter=None, source="en", target="en-x-line") for _ in range(20)}
    assert pair == {"line@1", "line@2"}
    assert answering(client, adapter="line@3") == "line@3"
    assert client.delete("/adapters/line/traffic").status_code == 204
    assert client.get("/adapters/line").json()["traffic"] == {}
    assert {answering(client) for _ in range(5)} == {"line@3"}
    client.put("/adapters/line/traffic", json={"1": 1.0})
    assert answering(client) == "line@1"
    assert client.put("/adapters/line/traffic", json={}).json()["traffic"] == {}
    client.put("/adapters/line/traffic", json={"1": 1.0})
    assert client.put("/adapters/line/current", json={"version": 2}).json()["traffic"] == {}
    assert answering(client) == "line@2"


@pytest.mark.usefixtures("line")
@pytest.mark.parametrize(
    ("weights", "status", "code"),
    [
        ({"1": 0.5}, 422, "traffic_invalid"),
        ({"1": 0.5, "2": 0.50001}, 422, "traffic_invalid"),
        ({"1": 1.5, "2": -0.5}, 422, "invalid"),
        ({"one": 1}, 422, "invalid"),
        ({"1": 0.5, "9": 0.5}, 404, "adapter_not_found"),
        ([1], 422, "invalid"),
    ],
)
def test_traffic_that_cannot_be(client: TestClient, weights: Any, status: int, code: str) -> None:
    problem(client.put("/adapters/line/traffic", json=weights), status, code)
    assert client.get("/adapters/line").json()["traffic"] == {}
    problem(client.put("/adapters/nobody/traffic", json={"1": 1}), 404, "adapter_not_found")
    problem(client.delete("/adapters/nobody/traffic"), 404, "adapter_not_found")


@pytest.mark.usefixtures("line")
def test_delete_a_version(client: TestClient) -> None:
    assert "line@3 is current" in problem(
        client.delete("/adapters/line/versions/3"), 409, "version_in_use"
    )
    client.put("/adapters/line/traffic", json={"1": 0.5, "3": 0.5})
    problem(client.delete("/adapters/line/versions/1"), 409, "version_in_use")
    assert client.delete("/adapters/line/versions/2").status_code == 204
    problem(client.delete("/adapters/line/versions/2"), 404, "adapter_not_found")
    gone = client.post("/translate", json={"q": TEXT, "adapter": "line@2"})
    problem(gone, 404, "adapter_not_found")
    assert client.get("/adapters/line").json()["versions"] == [1, 3]


def test_a_running_request_outlives_its_version(client: TestClient, line: AdapterRegistry) -> None:
    line.promote("line", 1)
    long = {"q": TEXT, "adapter": "line@3", "max_new_tokens": 400, "temperature": 5, "seed": 1}
    answers: list[Any] = []
    thread = threading.Thread(
        target=lambda: answers.append(client.post("/translate", json=long).json())
    )
    thread.start()
    deadline = time.monotonic() + 30
    # Not until line@3 is resident: an earlier test's may be still.
    while not client.app.state.services.serving.engine.stats().num_running:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert client.delete("/adapters/line/versions/3").status_code == 204
    thread.join(60)
    assert answers[0]["adapter"] == "line@3"
    assert answers[0]["translatedText"]


@pytest.mark.usefixtures("line")
def test_download_is_a_folder_that_plain_peft_loads(
    client: TestClient, app_settings: Settings, tmp_path: Path
) -> None:
    from peft import PeftModel

    first, second = (client.get("/adapters/line/versions/1/download") for _ in range(2))
    assert first.status_code == 200
    assert first.headers["content-type"] == "application/zip"
    assert 'filename="line-1.zip"' in first.headers["content-disposition"]
    assert first.content == second.content, "the same bytes each time"
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert archive.testzip() is None
        assert {CONFIG_FILE, WEIGHTS_FILE, SEAL_FILE} <= set(archive.namelist())
        archive.extractall(tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(EMBEDDED), tmp_path)
    assert model.peft_config["default"].r == 4
    original = app_settings.data_dir / "adapters" / "line" / "versions" / "1" / WEIGHTS_FILE
    assert load_file(tmp_path / WEIGHTS_FILE).keys() == load_file(original).keys()
    problem(client.get("/adapters/line/versions/9/download"), 404, "adapter_not_found")
