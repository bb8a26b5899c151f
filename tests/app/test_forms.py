"""How it is told what is wrong with a body: each fault by its place, in words of the field."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient


def refused(response: Any) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (422, "invalid")
    return body


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"q": "a\0"}, "q: Value error, the text holds a NUL character (U+0000), which no text may (got 'a\\x00')"),
        ({"q": ["x", 7, "y"]}, "q.1: Input should be a valid string (got 7)"),
        ({"q": 5}, "q: Input should be a valid string (got 5); q: Input should be a valid list (got 5)"),
        ({"q": "x", "stop": ["a", 1]}, "stop.1: Input should be a valid string (got 1)"),
        ({"q": "x", "adapter": "x" * 81}, f"adapter: Value should have at most 80 characters, not 81 (got '{'x' * 80}')"),
    ],
)  # fmt: skip
def test_places_are_told_as_they_are_in_the_body(
    client: TestClient, body: dict[str, Any], detail: str
) -> None:
    answer = refused(client.post("/translate", json=body))
    assert answer["detail"] == detail
    places = [".".join(map(str, e["loc"])) for e in answer["errors"]]
    assert places == ["body." + part.partition(":")[0] for part in detail.split("; ")]


def test_a_body_of_faults_is_not_told_fault_by_fault(client: TestClient) -> None:
    answer = refused(client.post("/translate", json={"q": [1] * 500_000}))
    assert answer["detail"] == "q.0: Input should be a valid string (got 1)"
    unknown = {"q": "x"} | {f"u{i}": 1 for i in range(20_000)}
    answer = refused(client.post("/translate", json=unknown))
    assert answer["detail"].startswith("body: 20,000 values are not valid, or not known")
    assert "errors" not in answer


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        (
            {"lora": {"target_modules": ["q_proj", ""]}},
            "config.lora.target_modules.1: String should have at least 1 character (got '')",
        ),
        (
            {"training": {"max_steps": 0}},
            "config.training.max_steps: Input should be -1 (got 0); "
            "config.training.max_steps: Input should be greater than or equal to 1 (got 0)",
        ),
        ({"training": {}, "prompt": {"text": 1}}, "config.prompt.text: Extra inputs are not permitted (got 1)"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_says_where(
    client: TestClient, config: dict[str, Any], detail: str
) -> None:
    body = {"dataset_id": "ds-0", "adapter": "yoda", "config": config}
    assert refused(client.post("/jobs", json=body))["detail"] == detail
    form = {"adapter": "yoda", "config": json.dumps(config)}
    by_form = refused(client.post("/jobs", files={"file": ("a.csv", b"a,b\n1,2\n")}, data=form))
    assert by_form["detail"] == detail
