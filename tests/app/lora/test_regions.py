"""Regions never overlap, and what is given back can be given out again."""

import random

from app.lora.regions import RegionAllocator


def test_first_fit_and_merging() -> None:
    regions = RegionAllocator(10)
    assert [regions.allocate(4), regions.allocate(4), regions.allocate(4)] == [0, 4, None]
    regions.release(0, 4)
    assert regions.allocate(5) is None, "8 and 9 do not touch 0 to 3"
    regions.release(4, 4)
    assert regions.allocate(10) == 0
    regions.release(0, 10)
    assert regions.num_free == 10


def test_random_use_never_overlaps_and_loses_nothing() -> None:
    rng = random.Random(0)
    regions = RegionAllocator(100)
    held: list[tuple[int, int]] = []
    refused = 0
    for _ in range(2000):
        if held and rng.random() < 0.5:
            regions.release(*held.pop(rng.randrange(len(held))))
        length = rng.randrange(1, 20)
        start = regions.allocate(length)
        if start is None:
            refused += 1
            continue
        assert 0 <= start <= 100 - length
        assert all(start >= s + n or s >= start + length for s, n in held)
        held.append((start, length))
    assert refused
    for region in held:
        regions.release(*region)
    assert regions.allocate(100) == 0
