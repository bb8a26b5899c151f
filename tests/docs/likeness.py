"""Whether an answer is like the one that a document shows: what may differ from run to run, may; nothing else.

`…` in what is shown stands for anything that was left out.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

_ELIDED = "…"
# Words depend on the processor's arithmetic, the rest on when and where it ran; only the type must agree.
_BY_CHANCE = {
    *("translatedText", "text", "content", "alternatives", "completion_tokens", "total_tokens"),
    *(
        "size_bytes",
        "checkpoints",
        "created",
        "created_at",
        "queue_position",
        "forward",
        "tokens_per_second",
    ),
    *("expected_start", "started_at", "finished_at", "eta_seconds", "memory_mb", "samples"),
    *("system_fingerprint", "content_sha256", "reason", "gain", "p_value", "total_steps"),
}
# How far a job has come when somebody looks is chance too.
_ALIKE = ({"queued", "preparing", "running"}, {"pausing", "paused"}, {"cancelling", "cancelled"})
_VOLATILE = re.compile(
    r"\b(?:(?:job|ds)-[0-9a-f]{16}|chatcmpl-[0-9a-f]{24})\b(?:@\d+)?"
    r"|\d{4}-\d\d-\d\d[T ][\d:.,]+(?:Z|\+00:00)?"
)
_IDS = re.compile(r"\b(?:job|ds)-[0-9a-f]{16}\b")


def differences(shown: str, real: str) -> list[str]:
    """In what `real` is not like `shown`; empty: it is."""
    if shown.lstrip().startswith("event: "):
        return _unlike_events(shown, real)
    try:
        expected = _parse(shown)
    except ValueError:
        return _unlike_text(shown, real)
    try:
        return list(_unlike(expected, json.loads(real)))
    except ValueError:
        return [f"not JSON: {real[:500]!r}"]


def matching_ids(shown: str, real: str) -> dict[str, str]:
    """Ids of jobs and datasets in the document -> those of this run, by the order in which they are first named."""
    return dict(
        zip(dict.fromkeys(_IDS.findall(shown)), dict.fromkeys(_IDS.findall(real)), strict=False)
    )


def _parse(text: str) -> Any:
    """JSON in which `…` stands for a value, or for further elements."""
    parts, containers = [], []
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[^"]', text):
        if token in "{[":
            containers.append(token)
        elif token in "}]":
            containers.pop()
        elif token == _ELIDED:
            begins_pair = containers[-1:] == ["{"] and not "".join(parts).rstrip().endswith(":")
            token = f'"{_ELIDED}": "{_ELIDED}"' if begins_pair else f'"{_ELIDED}"'
        parts.append(token)
    return json.loads("".join(parts))


def _unlike(shown: Any, real: Any, place: str = "", *, values: bool = True) -> Iterator[str]:
    """`values`: not only names and types must agree."""
    if shown == _ELIDED:
        return
    if isinstance(shown, dict) and isinstance(real, dict):
        for name in shown.keys() - real.keys() - {_ELIDED}:
            yield f"{place}.{name} is not there"
        if _ELIDED not in shown:
            yield from (f"{place}.{name} is not shown" for name in real.keys() - shown.keys())
        for name in shown.keys() & real.keys():
            chance = name in _BY_CHANCE and None in (shown[name], real[name])
            if not chance:
                is_fixed = values and name not in _BY_CHANCE
                yield from _unlike(shown[name], real[name], f"{place}.{name}", values=is_fixed)
    elif isinstance(shown, list) and isinstance(real, list):
        is_whole = _ELIDED not in shown
        wanted = shown if is_whole else shown[: shown.index(_ELIDED)]
        if values and (len(real) < len(wanted) or (is_whole and len(real) != len(wanted))):
            yield f"{place} has {len(real)} elements, not {len(wanted)}"
        for number, (left, right) in enumerate(zip(wanted, real, strict=False)):
            yield from _unlike(left, right, f"{place}[{number}]", values=values)
    elif isinstance(shown, float) and isinstance(real, float | int):
        return  # measured
    elif type(shown) is not type(real) or (values and not _is_same(shown, real)):
        yield f"{place} is {real!r}, not {shown!r}"


def _is_same(shown: Any, real: Any) -> bool:
    if not isinstance(shown, str):
        return bool(shown == real)
    if any({shown, real} <= states for states in _ALIKE):
        return True
    if shown.endswith(_ELIDED):
        return real.startswith(shown[:-1])
    return _VOLATILE.sub("", shown) == _VOLATILE.sub("", real)


def _unlike_events(shown: str, real: str) -> list[str]:
    """Each event shown has one like it, in that order, by its kind and the names and types of its data."""
    rest = iter(_events(real))
    for kind, data in _events(shown):
        expected = _parse(data)
        if not any(
            kind == other and not list(_unlike(expected, json.loads(found), values=False))
            for other, found in rest
        ):
            return [f"no event {kind!r} like {data!r} in {real[:2000]!r}"]
    return []


def _events(stream: str) -> list[tuple[str, str]]:
    found = []
    for block in re.split(r"\n\s*\n", stream.strip()):
        if kind := re.search(r"^event: (\w+)", block, re.M):
            data = re.search(r"^data: (.*?)(?=^\w+: |\Z)", block, re.M | re.S)
            found.append((kind[1], data[1].strip().removesuffix(f"\n{_ELIDED}") if data else "{}"))
    return found


def _unlike_text(shown: str, real: str) -> list[str]:
    """The lines shown are there in that order, whatever the numbers in them and however they are aligned."""
    rest = _plain(real)
    for line in filter(None, map(str.strip, shown.splitlines())):
        for piece in filter(None, map(str.strip, line.split(_ELIDED))):
            before, found, rest = rest.partition(_plain(piece))
            if not found:
                return [f"{piece!r} is not in {before[:2000]!r}"]
    return []


def _plain(text: str) -> str:
    text = re.sub(r"[0-9a-f]{16,}|\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "0", _VOLATILE.sub("", text))
    return re.sub(r"\s+", " ", text)
