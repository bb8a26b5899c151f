"""The API's description: committed, complete, and true to the models."""

from typing import Any

import pytest
from pydantic import TypeAdapter

import app.preview
import core.datasets
from app import schemas
from app.draining import ALWAYS_ANSWERED
from app.main import create_app
from app.openapi_examples import EXAMPLES, FORM_EXAMPLES, TEXT_EXAMPLES
from app.routes import libretranslate, system
from app.routes.openai import shapes
from core.settings import Settings
from scripts.write_openapi import PATH, render


@pytest.fixture(scope="module")
def described() -> Any:
    return create_app(Settings(_env_file=None, redis_url="redis://localhost"))


@pytest.fixture(scope="module")
def operations(described: Any) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in described.openapi()["paths"].items()
        for method, operation in item.items()
    ]


def test_the_committed_file_is_up_to_date() -> None:
    message = "the API has changed; `python -m scripts.write_openapi` writes openapi.json"
    assert PATH.read_text(encoding="utf-8") == render(), message


def test_every_call_is_summed_up(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    for path, method, operation in operations:
        assert operation["summary"], f"{method} {path} has no docstring"
        assert operation["tags"], f"{method} {path}"


def test_every_call_has_examples(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    for path, method, operation in operations:
        answers = {s: a for s, a in operation["responses"].items() if s < "3"}
        assert answers, f"{method} {path}"
        assert all(a.get("content") for s, a in answers.items() if s != "204"), f"{method} {path}"
        contents = [answer.get("content", {}) for answer in answers.values()]
        contents.append(operation.get("requestBody", {}).get("content", {}))
        for content in contents:
            for kind, media in content.items():
                if kind != "application/zip":
                    told = "example" in media or "examples" in str(media.get("schema"))
                    assert told, f"{method} {path} has no example of {kind}"


def test_each_example_is_of_a_call(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    assert {*FORM_EXAMPLES, *TEXT_EXAMPLES} <= {(method, path) for path, method, _ in operations}


def test_every_call_says_how_it_fails(operations: list[tuple[str, str, dict[str, Any]]]) -> None:
    for path, method, operation in operations:
        failures = {s: a for s, a in operation["responses"].items() if s >= "4"}
        assert "403" in failures, f"{method} {path}: AllowedHostsMiddleware answers all of them"
        assert ("503" in failures) == (path not in ALWAYS_ANSWERED), f"{method} {path}"
        is_openai = path.startswith("/v1/")
        assert ("422" in failures) <= (not is_openai), f"{method} {path}"
        kind = "OpenAIErrorBody" if is_openai else "Problem"
        for status, answer in failures.items():
            if (path, status) == ("/ready", "503"):
                continue  # what is missing, not a problem
            expected = f"#/components/responses/{kind}{status}"
            assert answer == {"$ref": expected}, f"{method} {path}"


def test_no_reference_leads_nowhere(described: Any) -> None:
    api = described.openapi()

    def references(value: Any) -> set[str]:
        if isinstance(value, list):
            return {r for item in value for r in references(item)}
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own | {r for item in value.values() for r in references(item)}
        return set()

    known = {
        f"#/components/{kind}/{name}" for kind, named in api["components"].items() for name in named
    }
    assert references(api) <= known


def test_examples_are_what_the_models_take_and_give() -> None:
    models: dict[str, Any] = {
        model.__name__: model
        for module in (schemas, shapes, libretranslate, system, core.datasets, app.preview)
        for model in vars(module).values()
        if isinstance(model, type)
    }
    assert set(EXAMPLES) <= set(models), set(EXAMPLES) - set(models)
    for name, example in EXAMPLES.items():
        adapter = TypeAdapter(models[name])
        given = adapter.dump_python(adapter.validate_python(example), mode="json")
        assert set(example) <= set(given), f"{name} has no {set(example) - set(given)}"
