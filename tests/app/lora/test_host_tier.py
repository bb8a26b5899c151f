"""Bounded bytes, least recently used first."""

import torch

from app.lora.host_tier import HostTier
from app.lora.weights import LoraWeights
from tests.app.harness import pack


def weights(num_values: int) -> LoraWeights:
    return pack({"s": (torch.zeros(1, num_values - 1), torch.zeros(1, 1))})


def test_the_longest_unused_go_first() -> None:
    tier = HostTier(max_bytes=100)
    for name in "ab":
        tier.put((name, ""), weights(10))
    assert tier.num_bytes == 80
    assert tier.get(("a", "")) is not None
    tier.put(("c", ""), weights(10))
    assert tier.get(("b", "")) is None
    assert tier.get(("a", "")) is not None
    assert tier.get(("c", "")) is not None
    assert tier.num_bytes == 80


def test_what_is_too_large_is_not_kept() -> None:
    tier = HostTier(max_bytes=100)
    tier.put(("a", ""), weights(10))
    tier.put(("a", ""), weights(10))
    assert tier.num_bytes == 40
    tier.put(("b", ""), weights(30))
    assert (len(tier), tier.num_bytes) == (0, 0)


def test_another_content_is_another_adapter() -> None:
    tier = HostTier(max_bytes=100)
    tier.put(("a", "1"), weights(2))
    assert tier.get(("a", "2")) is None


def test_what_is_dropped_makes_room() -> None:
    tier = HostTier(max_bytes=100)
    for name in "ab":
        tier.put((name, ""), weights(10))
    tier.drop(("a", ""))
    tier.drop(("a", ""))
    assert list(tier) == [("b", "")]
    assert tier.num_bytes == 40
