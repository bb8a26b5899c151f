"""Conversations: OpenAI messages, ShareGPT conversations, and lists of user/assistant pairs -> exchanges."""

from itertools import pairwise
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
    "developer": _SYSTEM,
}
_WANTED = "wanted are a user's and an assistant's turns in alternation, a system turn only in front"

_Turn = tuple[str, Any]


class Conversation(NamedTuple):
    """Questions and answers as they stand in the file, of whatever type."""

    exchanges: list[tuple[Any, Any]]
    has_system: bool


def read_conversation(value: Any) -> Conversation:
    """Reads role/content, from/value and user/assistant turns. Raises FaultyRowError."""
    if not isinstance(value, list):
        raise FaultyRowError("turns_invalid", f"is not a list of turns; {_WANTED}")
    turns = [turn for item in value for turn in _read_item(item)]
    has_system = bool(turns) and turns[0][0] == _SYSTEM
    spoken = turns[has_system:]
    _check_order(spoken, num_before=int(has_system))
    texts = [text for _, text in spoken]
    return Conversation(list(zip(texts[::2], texts[1::2], strict=True)), has_system)


def _check_order(turns: list[_Turn], num_before: int) -> None:
    for number, (before, (role, _)) in enumerate(
        pairwise([(_ASSISTANT, None), *turns]), start=1 + num_before
    ):
        if role == _SYSTEM:
            raise FaultyRowError(
                "turns_invalid", f"has a system turn as its turn {number}; {_WANTED}"
            )
        if role == before[0]:
            follows = f"follows the {role}'s" if number > 1 + num_before else "comes first"
            raise FaultyRowError(
                "turns_invalid", f"turn {number} is the {role}'s, and {follows}; {_WANTED}"
            )
    if not turns or turns[-1][0] != _ASSISTANT:
        ending = f"ends with the {turns[-1][0]}'s turn" if turns else "has no turns"
        raise FaultyRowError("turns_invalid", f"{ending}, so nothing is answered; {_WANTED}")


def _read_item(item: Any) -> list[_Turn]:
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
