"""What a newcomer does, against the real processes: start, translate, fine-tune, watch, translate with the result."""

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.dragoman.conftest import YODA, running_service

pytestmark = pytest.mark.e2e

TEXT = "The soup is cold and the bread is old."


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        running_service(tmp_path_factory.mktemp("service")) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def wait_until(condition: Any, timeout_s: float, message: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.1)


def translate(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/translate", json={"q": TEXT, **body})
    assert response.status_code == 200, response.text
    return response.json()


def submit(client: httpx.Client, adapter: str, **training: Any) -> Any:
    response = client.post(
        "/jobs",
        files={"file": ("yoda.csv", YODA.read_bytes())},
        data={
            "adapter": adapter,
            "config": json.dumps(
                {
                    "source": "en",
                    "target": f"en-x-{adapter[:8]}",
                    "training": training,
                    # A few steps make no better translator.
                    "evaluation": {"promote": "always"},
                }
            ),
        },
    )
    assert response.status_code == 202, response.text
    return response.json()


def metric(client: httpx.Client, name: str) -> float:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no metric {name}")


def test_the_first_call_answers_from_the_box(service: httpx.Client) -> None:
    adapters = {a["name"]: a for a in service.get("/adapters").json()}
    assert {"yoda", "wenyan"} <= set(adapters)
    assert adapters["yoda"]["current"] == 1
    yoda = translate(service, adapter="yoda")
    assert yoda["adapter"] == "yoda@1"
    assert yoda["translatedText"] not in ("", TEXT)
    wenyan = translate(service, q="王怒，遂去。", source="lzh", target="zh")
    assert wenyan["adapter"] == "wenyan@1"
    assert wenyan["translatedText"]


def test_a_file_becomes_a_live_adapter(service: httpx.Client) -> None:
    fresh = f"f{uuid4().hex[:7]}"  # a second try finds what the first has left
    before = service.post("/translate", json={"q": TEXT, "adapter": fresh})
    assert before.status_code == 404
    job = submit(service, fresh, max_steps=12, logging_steps=2)
    seen = []
    with service.stream("GET", f"/jobs/{job['id']}/events", timeout=300) as events:
        kind = ""
        for line in events.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                seen.append((kind, json.loads(line.removeprefix("data: "))))
    published = time.monotonic()
    answer = translate(service, adapter=fresh)
    first_answer_s = time.monotonic() - published
    assert seen[-1] == ("done", {"status": "succeeded"})
    statuses = [d["status"] for k, d in seen if k == "status"]
    assert statuses == ["queued", "preparing", "running", "evaluating", "succeeded"]
    losses = [d["train"]["loss"] for k, d in seen if k == "metrics" and "train" in d]
    assert len(losses) >= 6
    assert losses[-1] < losses[0], "it did not learn"
    assert answer["adapter"] == f"{fresh}@1"
    assert first_answer_s < 5, "it was not live at once"
    by_pair = translate(service, source="en", target=f"en-x-{fresh}")
    assert by_pair["translatedText"] == answer["translatedText"]

    ended = service.get(f"/jobs/{job['id']}").json()
    assert ended["status"] == "succeeded"
    assert ended["adapter_version"] == 1
    assert [p["loss"] for p in ended["loss_curve"]["train"]] == losses
    assert ended["progress"]["percent"] == 100
    assert ended["progress"]["step"] == ended["progress"]["total_steps"] == 12
    assert ended["progress"]["tokens_per_second"] > 0
    assert "training" in service.get(f"/jobs/{job['id']}/log").text

    again = submit(service, fresh, max_steps=1)
    wait_until(
        lambda: service.get(f"/jobs/{again['id']}").json()["status"] == "succeeded",
        240,
        "the second job did not end",
    )
    assert translate(service, adapter=fresh)["adapter"] == f"{fresh}@2"
    first = translate(service, adapter=f"{fresh}@1")
    assert first["translatedText"] == answer["translatedText"], "an old version changed"


def test_translating_goes_on_while_a_job_trains_and_is_cancelled(service: httpx.Client) -> None:
    expected = translate(service, adapter="yoda")["translatedText"]
    job = submit(service, "cancelled", num_train_epochs=500)
    wait_until(
        lambda: service.get(f"/jobs/{job['id']}").json()["status"] == "running",
        240,
        "the job did not start",
    )
    assert translate(service, adapter="yoda")["translatedText"] == expected
    service.post(f"/jobs/{job['id']}/cancel")
    wait_until(
        lambda: service.get(f"/jobs/{job['id']}").json()["status"] == "cancelled",
        120,
        "the job did not stop",
    )
    assert service.post("/translate", json={"q": "x", "adapter": "cancelled"}).status_code == 404


def test_a_client_that_goes_away_frees_its_place(service: httpx.Client) -> None:
    # Seconds of work for any CPU, so that none has ended when its client goes.
    body = {"q": ["The river is wide. " * 20] * 100, "adapter": "yoda", "max_new_tokens": 1000}
    for stream in (True, False):
        cancelled = metric(service, "dragoman_engine_cancelled_total")
        call = http.client.HTTPConnection(service.base_url.host, service.base_url.port)
        call.request(
            "POST",
            "/translate",
            json.dumps({**body, "stream": stream}),
            {"content-type": "application/json"},
        )
        wait_until(lambda: metric(service, "dragoman_engine_running") > 0, 30, "it did not start")
        call.close()
        wait_until(
            lambda: (
                metric(service, "dragoman_engine_running")
                == metric(service, "dragoman_engine_waiting")
                == 0
            ),
            30,
            "not freed",
        )
        assert metric(service, "dragoman_engine_cancelled_total") > cancelled


def test_a_bad_file_is_refused_with_its_lines(service: httpx.Client) -> None:
    response = service.post(
        "/jobs",
        files={"file": ("bad.csv", b"prompt,completion\nfine,fine too\nno target,\n")},
        data={"adapter": "bad"},
    )
    assert response.status_code == 422
    assert response.json()["report"]["errors"][0]["line"] == 3
    assert all(a["name"] != "bad" for a in service.get("/adapters").json())
