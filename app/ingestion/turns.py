"""A conversation of one question and one answer: OpenAI messages and ShareGPT conversations."""

from typing import Any, NamedTuple

from app.ingestion.records import FaultyRowError, printable

_USER = "user"
_ASSISTANT = "assistant"
_SYSTEM = "system"
_ROLES = {
    "user": _USER,
    "human": _USER,
    "prompter": _USER,
    "assistant": _ASSISTANT,
    "gpt": _ASSISTANT,
    "model": _ASSISTANT,
    "bot": _ASSISTANT,
    "system": _SYSTEM,
}
_WANTED = "wanted is one user turn, then one assistant turn"


class Exchange(NamedTuple):
    """The contents as they stand in the file, of whatever type."""

    question: Any
    answer: Any
    has_system: bool


def read_exchange(value: Any) -> Exchange:
    """Reads role/content, from/value and user/assistant turns. Raises FaultyRowError."""
    if not isinstance(value, list):
        raise FaultyRowError("turns_invalid", f"is not a list of turns; {_WANTED}")
    turns = [turn for item in value for turn in _read_item(item)]
    spoken = [turn for turn in turns if turn[0] != _SYSTEM]
    roles = [role for role, _ in spoken]
    if len(roles) > 2:
        raise FaultyRowError("multi_turn", f"has {len(roles)} turns; {_WANTED}")
    if roles != [_USER, _ASSISTANT]:
        seen = ", ".join(roles) or "none"
        raise FaultyRowError("turns_invalid", f"has these turns: {seen}; {_WANTED}")
    return Exchange(spoken[0][1], spoken[1][1], has_system=len(spoken) < len(turns))


def _read_item(item: Any) -> list[tuple[str, Any]]:
    if not isinstance(item, dict):
        raise FaultyRowError("turns_invalid", f"has a turn that is not an object; {_WANTED}")
    if _USER in item and _ASSISTANT in item:
        return [(_USER, item[_USER]), (_ASSISTANT, item[_ASSISTANT])]
    for role_key, text_key in (("role", "content"), ("from", "value")):
        if role_key in item and text_key in item:
            return [(_read_role(item[role_key]), item[text_key])]
    raise FaultyRowError(
        "turns_invalid", "has a turn with neither role and content nor from and value"
    )


def _read_role(name: Any) -> str:
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        what = repr(printable(name)) if isinstance(name, str) else "that is not a text"
        raise FaultyRowError(
            "role_unknown", f"has a turn with a role {what}; known are {', '.join(_ROLES)}"
        )
    return role
