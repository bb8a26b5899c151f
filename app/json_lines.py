"""Answers that are JSON lines."""

from collections.abc import Iterable, Iterator, Mapping

from starlette.responses import StreamingResponse

MEDIA_TYPE = "application/jsonl"
_CHUNK_CHARS = 64 * 1024


class JsonLines(StreamingResponse):
    """`lines`, each with its end, many at a time: to have a thread fetch one takes a hundred times as long as to make it."""

    media_type = MEDIA_TYPE

    def __init__(self, lines: Iterable[str], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(_chunks(lines), headers=headers)


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    chunk: list[str] = []
    num_chars = 0
    for line in lines:
        chunk.append(line)
        num_chars += len(line)
        if num_chars >= _CHUNK_CHARS:
            yield "".join(chunk)
            chunk, num_chars = [], 0
    if chunk:
        yield "".join(chunk)
