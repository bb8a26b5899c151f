"""Who is resident in a bank that is full."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.engine.adapters import ResidentAdapters
from app.engine.stats import EngineStats
from core.adapter_version import AdapterVersion
from tests.app.harness import load_nf4, make_adapter
from tests.app.tiny import Tiny

Pin = Callable[[AdapterVersion], int | None]


@pytest.fixture
def adapters(tiny: Tiny) -> Iterator[ResidentAdapters]:
    """Over a bank of 8 columns."""
    resident = ResidentAdapters(
        load_nf4(tiny.folder).create_bank(width=8, num_slots=3),
        EngineStats(),
        wake=lambda: None,
        max_wait_s=10,
        host_bytes=1 << 20,
    )
    yield resident
    resident.close()


@pytest.fixture
def make(tiny: Tiny, tmp_path: Path, adapters: ResidentAdapters) -> Callable[..., AdapterVersion]:
    """An adapter of a rank, read already."""

    def make_of_rank(name: str, rank: int) -> AdapterVersion:
        version = make_adapter(tmp_path, tiny.reference, name, r=rank, target_modules=["o_proj"])
        adapters.read(version)
        return version

    return make_of_rank


@pytest.fixture
def pin(adapters: ResidentAdapters) -> Pin:
    return lambda version: adapters.pin(version, time.monotonic(), is_counted=True)


def test_a_rank_that_finds_no_room_keeps_nobody_smaller_out(
    make: Callable[..., AdapterVersion], pin: Pin
) -> None:
    assert pin(make("running", 5))
    large, medium, small = make("large", 6), make("medium", 4), make("small", 3)
    for _ in range(2):
        assert pin(large) is None
        assert pin(medium) is None
    assert pin(small)
    assert pin(make("tiny", 1)) is None


def test_room_is_seen_as_soon_as_an_adapter_is_left(
    adapters: ResidentAdapters, make: Callable[..., AdapterVersion], pin: Pin
) -> None:
    running, other = make("running", 5), make("other", 3)
    assert pin(running)
    assert pin(running)
    assert pin(other)
    large = make("large", 4)
    assert pin(large) is None
    adapters.unpin(running)
    assert pin(large) is None, "somebody is still running with it"
    adapters.unpin(running)
    assert pin(large)
    assert set(adapters.refs) == {other.ref, large.ref}


def test_slots_run_out_before_columns_do(
    adapters: ResidentAdapters, make: Callable[..., AdapterVersion], pin: Pin
) -> None:
    running = [make(f"r{i}", 1) for i in range(3)]
    assert all(pin(version) for version in running)
    late = make("late", 2)
    assert pin(late) is None
    adapters.unpin(running[1])
    assert pin(late)
    assert running[1].ref not in adapters.refs


def test_an_adapter_that_never_answered_is_not_kept(
    adapters: ResidentAdapters, make: Callable[..., AdapterVersion], pin: Pin
) -> None:
    version = make("mine", 2)
    assert pin(version) is not None
    assert pin(version) is not None
    error = adapters.reject(version)
    assert error is not None
    assert error.code == "adapter_unusable"
    adapters.unpin(version)
    assert adapters.refs == [version.ref], "somebody uses it still"
    adapters.unpin(version)
    assert adapters.refs == []
    assert len(adapters._tier) == 0


def test_an_adapter_that_answered_once_is_not_to_blame_for_a_text(
    adapters: ResidentAdapters, make: Callable[..., AdapterVersion], pin: Pin
) -> None:
    version = make("mine", 2)
    assert pin(version) is not None
    adapters.accept(version)
    assert adapters.reject(version) is None
    adapters.unpin(version)
    assert adapters.refs == [version.ref]
    assert len(adapters._tier) == 1
