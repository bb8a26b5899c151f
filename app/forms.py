"""Requests that come as JSON or as a form: the body -> one model, or a problem that says what is wrong."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.datastructures import FormData, UploadFile

from core.errors import InvalidError, MalformedError, ServiceError

_Model = TypeVar("_Model", bound=BaseModel)

_MAX_FAULTS = 1000  # to list a million takes seconds, in which nobody else is answered
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


class UnsupportedMediaTypeError(ServiceError):
    status_code = 415
    code = "unsupported_media_type"


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request) -> Any:
    """Raises MalformedError where the body is not JSON in UTF-8, or holds NaN or Infinity."""
    body = await request.body()
    try:
        return parse_json(body, "the body", _refuse_constant)
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}"
        ) from error


def parse_json(
    text: str | bytes, name: str, parse_constant: Callable[[str], Any] | None = None
) -> Any:
    """Raises MalformedError, which says that `name` is not JSON, or UnicodeDecodeError."""
    try:
        return json.loads(text, parse_constant=parse_constant)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{name} is not JSON: {error}") from error


def validate(model: type[_Model], values: Any) -> _Model:
    """Raises RequestValidationError, located in the body."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(faults_of(error, values, "body"), body=values) from error


def at_most(max_fields: int) -> Callable[[Any], Any]:
    """A BeforeValidator of an object that FastAPI reads by itself: of too many fields it tells once, not of each."""

    def check(values: Any) -> Any:
        if isinstance(values, dict) and len(values) > max_fields:
            raise PydanticCustomError("too_long", f"at most {max_fields:,} fields are accepted")
        return values

    return check


def faults_of(error: ValidationError, values: Any, *where: str) -> list[dict[str, Any]]:
    """What RequestValidationError takes: the faults of `values`, which are at `where`, by their places in them.

    pydantic names the kinds that a value may be as if they were its fields, and says of each why the value is not that;
    here only the kinds are heard that fit it best. Raises InvalidError for more faults than are worth a list.
    """
    if error.error_count() > _MAX_FAULTS:
        raise InvalidError(
            f"{'.'.join(where)}: {error.error_count():,} values are not valid, or not known; at most "
            f"{_MAX_FAULTS:,} are told one by one"
        )
    faults = [(_place(e, values), e) for e in error.errors(include_url=False)]
    above = {place[:i] for place, _ in faults for i in range(len(place))}
    fitting = {place for place, e in faults if not e["type"].endswith("_type")}
    return [
        {**e, "loc": (*where, *place)}
        for place, e in faults
        if place == e["loc"]
        or (place not in above and (place not in fitting or not e["type"].endswith("_type")))
    ]


def _place(fault: ErrorDetails, values: Any) -> tuple[int | str, ...]:
    place: list[int | str] = []
    for part in fault["loc"]:
        try:
            values = values[part]
        except (LookupError, TypeError):  # the name of a kind, unless it is what is missing
            if fault["type"] != "missing" or part != fault["loc"][-1]:
                continue
        place.append(part)
    return tuple(place)


async def read_fields(request: Request) -> Any:
    """The fields of a JSON body or of a form without files.

    Raises UnsupportedMediaTypeError for another kind of body, InvalidError for a file, and MalformedError.
    """
    kind = media_type(request)
    if kind == "application/json" or kind.endswith("+json") or not kind:
        return await read_json(request)
    if kind not in FORM_TYPES:
        raise UnsupportedMediaTypeError(
            f"content-type {kind[:80]!r} is not accepted; send application/json or a form"
        )
    async with opened_form(request) as form:
        values = form_values(form)
    for name, value in values.items():
        if isinstance(value, UploadFile):
            raise InvalidError(
                f"{name[:80]!r} is a file, which is not accepted here; send its text as `q`"
            )
    return values


@asynccontextmanager
async def opened_form(request: Request, *, max_fields: int = 1000) -> AsyncIterator[FormData]:
    """The form with at most one file, closed afterwards. Raises MalformedError for a charset that cannot be."""
    try:
        form = await request.form(max_files=1, max_fields=max_fields)
    except UnicodeError as error:
        raise MalformedError(f"the form is not in the charset that it names: {error}") from error
    try:
        yield form
    finally:
        await form.close()


def form_values(form: FormData) -> dict[str, Any]:
    """A form's text fields; one that comes several times is a list."""
    values: dict[str, Any] = {}
    for key in form:
        found = form.getlist(key)
        # As LibreTranslate does: line ends are LF, whatever the browser sent.
        texts = [v.replace("\r\n", "\n") if isinstance(v, str) else v for v in found]
        values[key] = texts if len(texts) > 1 else texts[0]
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
