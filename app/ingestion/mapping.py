"""Which columns hold the source and the target: as the caller says, or guessed from common names."""

import re
from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.ingestion.records import MAX_COLUMN_CHARS, Table, UnreadableError, printable
from core.errors import InvalidError

# In the order of preference. Alpaca's (instruction, input, output) comes before its own last two.
_COMMON_PAIRS = (
    ("prompt", "completion"),
    ("source", "target"),
    ("sentence", "translation_extra"),
    ("sentence", "translation"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("prompt", "response"),
    ("question", "answer"),
    ("classical", "modern"),
    ("src", "tgt"),
    ("text", "translation"),
    ("original", "translation"),
)
_COMMON_INPUTS = {"instruction": ("input", "context")}
_COMMON_TURNS = ("messages", "conversations")
_LANGUAGE = re.compile(r"[a-z]{2}([-_][a-z]{2,4})?")
_NOT_LANGUAGES = frozenset({"id", "no"})  # far more often row numbers than Indonesian and Norwegian
_MAX_LISTED = 20

_FORM = '{"source": "<column>", "target": "<column>"}'


class Mapping(BaseModel):
    """Column names: `source` and `target`, with an `input` that is put below the source; or `messages`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | None = Field(None, min_length=1, max_length=MAX_COLUMN_CHARS)
    input: str | None = Field(None, min_length=1, max_length=MAX_COLUMN_CHARS)
    target: str | None = Field(None, min_length=1, max_length=MAX_COLUMN_CHARS)
    messages: str | None = Field(None, min_length=1, max_length=MAX_COLUMN_CHARS)

    @model_validator(mode="after")
    def _is_one_shape(self) -> Self:
        pair = (self.source, self.target)
        if self.messages is not None:
            if pair != (None, None) or self.input is not None:
                raise ValueError("messages stands alone")
        elif None in pair:
            raise ValueError("source and target are both needed")
        elif self.target in (self.source, self.input):
            raise ValueError("source and target must be different columns")
        return self

    def columns(self) -> list[str]:
        return [c for c in (self.source, self.input, self.target, self.messages) if c is not None]

    def named(self) -> dict[str, str]:
        """As it is recorded, and accepted again."""
        return {key: value for key, value in self if value is not None}


def parse_mapping(text: str) -> Mapping:
    """Raises InvalidError `mapping_invalid`."""
    try:
        return Mapping.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidError(
            f"mapping {printable(text)!r} is not accepted: {where and where + ': '}{first['msg']}; "
            f"it is JSON such as {_FORM}",
            code="mapping_invalid",
        ) from error


def settle_mapping(given: Mapping | None, table: Table) -> Mapping:
    """What was given, or what the file says, or a guess. Raises UnreadableError where a column is not there."""
    if given is not None:
        for column in given.columns():
            if not (table.has(column) if table.has else column in table.columns):
                raise UnreadableError(
                    "column_missing",
                    f"mapping names the column {printable(column)!r}, which is not there; "
                    f"the columns are {_listed(table.columns)}",
                    column=printable(column),
                )
        return given
    if table.sides:
        return Mapping(source=table.sides[0], target=table.sides[1])
    return guess_mapping(table.columns)


def guess_mapping(columns: list[str]) -> Mapping:
    """Raises UnreadableError, with what was seen and what is wanted, if there is no telling."""
    by_name = {column.lower(): column for column in reversed(columns)}
    for name in _COMMON_TURNS:
        if name in by_name:
            return Mapping(messages=by_name[name])
    for source, target in _COMMON_PAIRS:
        if source in by_name and target in by_name:
            extra = next((n for n in _COMMON_INPUTS.get(source, ()) if n in by_name), None)
            return Mapping(
                source=by_name[source],
                input=by_name[extra] if extra else None,
                target=by_name[target],
            )
    languages = _language_columns(columns)
    if len(languages) == 2 and "en" in (name.lower()[:2] for name in languages):
        return Mapping(source=languages[0], target=languages[1])
    if len(columns) == 2:
        return Mapping(source=columns[0], target=columns[1])
    raise UnreadableError(
        "mapping_required",
        f"which columns are source and target cannot be told from {_listed(columns)}; "
        f"send mapping={_FORM}",
    )


def has_common_names(mapping: Mapping) -> bool:
    """False where only the order of two columns decided which is the source."""
    if mapping.messages is not None:
        return True
    return (str(mapping.source).lower(), str(mapping.target).lower()) in _COMMON_PAIRS


def _language_columns(columns: Iterable[str]) -> list[str]:
    return [
        c for c in columns if _LANGUAGE.fullmatch(c.lower()) and c.lower() not in _NOT_LANGUAGES
    ]


def _listed(columns: list[str]) -> str:
    listed = ", ".join(repr(printable(c)) for c in columns[:_MAX_LISTED])
    return f"{listed}, … ({len(columns)} in all)" if len(columns) > _MAX_LISTED else listed
