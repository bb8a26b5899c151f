"""A record -> a row of source and target texts, by a mapping; or what is wrong with it."""

from typing import Any, NamedTuple

from app.ingestion.mapping import Mapping
from app.ingestion.records import MAX_FIELD_CHARS, FaultyRowError, Record, is_encodable, printable
from app.ingestion.turns import read_conversation
from core.datasets import Exchange, Row, RowError

_MAX_EXCHANGES = 256  # each is rendered with all before it


class Pair(NamedTuple):
    """A usable row. `line` is where it begins in the upload."""

    line: int
    row: Row
    has_system: bool = False


def read_pair(record: Record, mapping: Mapping) -> Pair | RowError:
    """Takes the two sides from `record`, without the white space around them."""
    try:
        if mapping.messages is not None:
            return _from_turns(record, mapping.messages)
        return _from_columns(record, mapping)
    except FaultyRowError as error:
        column = error.column or mapping.messages
        return RowError(
            line=record.line,
            column=printable(column) if column else None,
            code=error.code,
            message=str(error),
        )


def _from_columns(record: Record, mapping: Mapping) -> Pair:
    assert mapping.source is not None
    assert mapping.target is not None
    prompt = _text_of(record, mapping.source)
    if mapping.input is not None and not _is_blank(record.values.get(mapping.input)):
        prompt = f"{prompt}\n{_text_of(record, mapping.input)}"
    completion = _text_of(record, mapping.target)
    return Pair(record.line, Row(prompt=prompt, completion=completion))


def _from_turns(record: Record, column: str) -> Pair:
    conversation = read_conversation(_value_of(record, column))
    num_exchanges = len(conversation.exchanges)
    if num_exchanges > _MAX_EXCHANGES:
        raise FaultyRowError(
            "too_many_turns",
            f"has {num_exchanges} questions and answers; at most {_MAX_EXCHANGES} are accepted",
        )
    first, *others = [(_checked(q), _checked(a)) for q, a in conversation.exchanges]
    num_chars = sum(len(q) + len(a) for q, a in [first, *others])
    if others and num_chars > MAX_FIELD_CHARS:
        raise FaultyRowError(
            "conversation_too_long",
            f"has {num_chars:,} characters; at most {MAX_FIELD_CHARS:,} are accepted",
        )
    further = tuple(Exchange(prompt=q, completion=a) for q, a in others)
    row = Row(prompt=first[0], completion=first[1], further=further)
    return Pair(record.line, row, has_system=conversation.has_system)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text_of(record: Record, column: str) -> str:
    try:
        return _checked(_value_of(record, column))
    except FaultyRowError as error:
        error.column = column
        raise


def _value_of(record: Record, column: str) -> Any:
    if column not in record.values:
        raise FaultyRowError("missing_columns", "is missing from this row", column)
    return record.values[column]


def _checked(value: Any) -> str:
    """Raises FaultyRowError unless `value` is a text to learn from."""
    if _is_blank(value):
        raise FaultyRowError("empty", "is empty")
    if not isinstance(value, str):
        raise FaultyRowError("not_text", f"is a {_kind(value)}; a text is wanted")
    if len(value) > MAX_FIELD_CHARS:
        raise FaultyRowError(
            "field_too_long",
            f"has {len(value):,} characters; at most {MAX_FIELD_CHARS:,} are accepted",
        )
    if "\0" in value:
        raise FaultyRowError("nul", "holds a NUL character")
    if not is_encodable(value):
        raise FaultyRowError("invalid_unicode", "holds half of a surrogate pair")
    return value.replace("\r\n", "\n").strip()


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list | dict):
        return "list" if isinstance(value, list) else "JSON object"
    return type(value).__name__
