import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from app.suggestions import Suggestion, add_suggestion, read_suggestions
from core.volume import Volume


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """In any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def suggestion(prompt: str) -> Suggestion:
    return Suggestion(
        prompt=prompt,
        completion="Arr.",
        source="en",
        target="en-x-pirate",
        adapter="pirate@1",
        created_at=datetime.now(UTC),
    )


def test_a_volume_that_takes_half_a_line(volume: Volume) -> None:
    first, cut, last = map(suggestion, ("One.", "Two.", "Three."))
    add_suggestion(volume, "pirate", first)
    size = (volume.suggestions / "pirate.jsonl").stat().st_size
    with room_for(size + 20), pytest.raises(OSError, match="No space left"):
        add_suggestion(volume, "pirate", cut)
    add_suggestion(volume, "pirate", last)
    assert list(read_suggestions(volume, "pirate")) == [first, last]
