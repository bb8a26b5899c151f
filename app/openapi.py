"""The API's description, /openapi.json: what FastAPI finds, plus errors and examples for each call."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.draining import ALWAYS_ANSWERED
from app.openapi_examples import EXAMPLES, FORM_EXAMPLES, TEXT_EXAMPLES
from app.problems import OpenAIErrorBody, is_openai_path
from app.routes.openai.shapes import ChatRequest, FineTuningRequest
from app.schemas import Cancellation, JobRequest, Problem, TranslateRequest

_REF = "#/components/schemas/"
# Read by hand, since they come as JSON or as a form: FastAPI does not see them.
_MODELS = (
    TranslateRequest,
    JobRequest,
    Cancellation,
    ChatRequest,
    FineTuningRequest,
    Problem,
    OpenAIErrorBody,
)
_TAGS = [
    {"name": "translate", "description": "Texts in, translations out."},
    {"name": "libretranslate", "description": "What LibreTranslate's clients call."},
    {"name": "adapters", "description": "Named translators, their versions, and who answers."},
    {"name": "datasets", "description": "Parallel corpora: upload once, train often."},
    {"name": "jobs", "description": "Fine-tuning, watched as it runs."},
    {"name": "openai", "description": "The same for OpenAI's clients, with `/v1` as base URL."},
    {"name": "system", "description": "For those who keep it up."},
]
_REASONS = {
    400: "The request is malformed.",
    403: "Host or Origin is none of `DRAGOMAN_ALLOWED_HOSTS`, where that is set.",
    404: "There is no such thing; `detail` lists what there is.",
    409: "The state of things forbids it.",
    413: "The body is too large.",
    415: "The body is of a kind that is not taken.",
    422: "A value is not valid; `errors` says where.",
    503: "Not now: `Retry-After` says when.",
}
_PROBLEM_EXAMPLE = {
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": "adapter 'yodda' does not exist; there are: wenyan, yoda, base",
    "code": "adapter_not_found",
    "adapters": ["wenyan", "yoda"],
}
_OPENAI_EXAMPLE = {
    "error": {
        "message": "adapter 'gpt-4o' does not exist; there are: wenyan, yoda, base",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }
}
# Calls that a state can forbid, by the end of their path.
_CONFLICTING = {
    "delete": ("/versions/{number}", "/{dataset_id}", "/{file_id}", "/{model}", "/{job_id}"),
    "post": (
        *("/cancel", "/pause", "/resume"),
        # An adapter may be a job's checkpoint, and there none yet, or none any more.
        *("/translate", "/suggest", "/chat/completions", "/fine_tuning/jobs"),
    ),
    "get": ("/{model}",),
}


def install(app: FastAPI) -> None:
    """Makes /openapi.json and /docs use this description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(app: FastAPI) -> dict[str, Any]:
    api = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=_TAGS,
    )
    schemas = api["components"]["schemas"]
    _, extra = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template=_REF + "{model}"
    )
    for name, schema in extra["$defs"].items():
        schemas.setdefault(name, schema)
    api["components"]["responses"] = _error_responses()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # FastAPI's own, which is never sent
    for path, method, operation in _operations(api):
        operation["summary"] = _first_sentence(operation.get("description", ""))
        _add_examples(operation, path, method, schemas)
        _add_errors(operation, path, method)
    return api


def _operations(api: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in api["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _first_sentence(description: str) -> str:
    return description.partition("\n")[0].partition(". ")[0].rstrip(".")


def _add_errors(operation: dict[str, Any], path: str, method: str) -> None:
    is_openai = is_openai_path(path)
    statuses = {403} if path in ALWAYS_ANSWERED else {403, 503}
    if operation.get("parameters"):
        statuses |= {422}
    if "{" in path or path == "/suggestions":  # of an adapter
        statuses |= {404}
    if "requestBody" in operation:
        statuses |= {400, 404, 413, 415, 422}
    if path.endswith("/preview"):
        statuses |= {400}  # its `adapter_config` is JSON
    if path.endswith(_CONFLICTING.get(method, ())):
        statuses |= {409}
    if is_openai and 422 in statuses:
        statuses = statuses - {422} | {400}
    operation["responses"] = {
        status: answer for status, answer in operation["responses"].items() if status < "4"
    } | {str(status): _error(status, is_openai) for status in sorted(statuses)}
    if path == "/ready":
        unready = {"application/json": {"schema": {"$ref": f"{_REF}Readiness"}}}
        operation["responses"]["503"] = {"description": "Something is missing.", "content": unready}


def _error(status: int, is_openai: bool) -> dict[str, str]:
    kind = OpenAIErrorBody if is_openai else Problem
    return {"$ref": f"#/components/responses/{kind.__name__}{status}"}


def _error_responses() -> dict[str, Any]:
    """What `_error` refers to."""
    responses = {}
    for model, media_type, not_found in (
        (Problem, "application/problem+json", _PROBLEM_EXAMPLE),
        (OpenAIErrorBody, "application/json", _OPENAI_EXAMPLE),
    ):
        for status, reason in _REASONS.items():
            content: dict[str, Any] = {"schema": {"$ref": _REF + model.__name__}}
            if status == 404:
                content["example"] = not_found
            responses[f"{model.__name__}{status}"] = {
                "description": reason,
                "content": {media_type: content},
            }
    return responses


def _add_examples(
    operation: dict[str, Any], path: str, method: str, schemas: dict[str, Any]
) -> None:
    contents = [answer.get("content", {}) for answer in operation["responses"].values()]
    contents.append(operation.get("requestBody", {}).get("content", {}))
    for content in contents:
        for kind, media in content.items():
            if kind in ("application/json", "application/x-www-form-urlencoded"):
                example = _example(media.get("schema", {}), schemas)
            else:
                others = FORM_EXAMPLES if kind == "multipart/form-data" else TEXT_EXAMPLES
                example = others.get((method, path))
            if example is not None:
                media.setdefault("example", example)


def _example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """Of a schema, or of the page or list that holds it; None if there is none."""
    if schema.get("type") == "array":
        item = _example(schema["items"], schemas)
        return None if item is None else [item]
    name = schema.get("$ref", "").removeprefix(_REF) or schema.get("title", "")
    if name.startswith("Page_"):
        item = _example(schemas[name]["properties"]["data"]["items"], schemas)
        page = {"object": "list", "data": [item], "has_more": False}
        return page | {"first_id": item["id"], "last_id": item["id"]}
    return EXAMPLES.get(name)
