"""A canary: versions of an adapter that share its requests, until one is made current."""

import pytest

from core.adapters import AdapterRegistry
from core.errors import InvalidError, NotFoundError
from core.volume import Volume
from tests.core.versions import publish


def test_a_canary(registry: AdapterRegistry, volume: Volume) -> None:
    for _ in range(3):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    registry.set_traffic("yoda", {1: 0.8, 2: 0.2, 3: 0.0})
    assert registry.get("yoda").traffic == {1: 0.8, 2: 0.2}
    drawn = [registry.resolve("yoda").version for _ in range(500)]
    assert 50 < drawn.count(2) < 150
    assert drawn.count(1) + drawn.count(2) == 500
    assert registry.resolve("yoda@3").version == 3
    registry.promote("yoda", 1)
    assert registry.get("yoda").traffic == {}
    assert {registry.resolve("yoda").version for _ in range(50)} == {1}


def test_a_canary_ends_in_the_step_that_changes_the_current_version(
    registry: AdapterRegistry, volume: Volume
) -> None:
    for _ in range(2):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    registry.set_traffic("yoda", {1: 0.5, 2: 0.5})
    kept = (volume.adapters / "yoda" / "traffic.json").read_bytes()
    registry.promote("yoda", 2)
    # As if the process had died before it could remove the weights.
    (volume.adapters / "yoda" / "traffic.json").write_bytes(kept)
    assert registry.get("yoda").traffic == {}
    assert {registry.resolve("yoda").version for _ in range(50)} == {2}


def test_what_a_canary_draws_is_not_found_but_drawn_again(
    registry: AdapterRegistry, volume: Volume
) -> None:
    versions = [publish(registry, volume, "yoda") for _ in range(2)]
    registry.promote("yoda", 1)
    assert registry.resolve("yoda") == registry.find("yoda") == versions[0]
    registry.set_traffic("yoda", {2: 1.0})
    assert registry.find("yoda") is None
    assert registry.resolve("yoda") == versions[1]
    assert registry.find("yoda") is None
    registry.set_traffic("yoda", {})
    assert registry.resolve("yoda") == registry.find("yoda") == versions[0]


@pytest.mark.parametrize(
    "weights",
    [{1: 0.5}, {1: 0.5, 2: 0.6}, {1: 1.5, 2: -0.5}, {1: float("nan")}, {1: float("inf")}, {1: 0.0}],
)
def test_weights_that_do_not_come_to_one(
    registry: AdapterRegistry, volume: Volume, weights: dict[int, float]
) -> None:
    for _ in range(2):
        publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    with pytest.raises(InvalidError) as caught:
        registry.set_traffic("yoda", weights)
    assert caught.value.code == "traffic_invalid"
    with pytest.raises(NotFoundError):
        registry.set_traffic("yoda", {1: 0.5, 9: 0.5})
    assert registry.get("yoda").traffic == {}


@pytest.mark.parametrize("content", ["", "[]", '{"weights": {"x": 1}}', '{"weights": {}}', "null"])
def test_unreadable_weights_are_none(
    registry: AdapterRegistry, volume: Volume, content: str
) -> None:
    publish(registry, volume, "yoda")
    registry.promote("yoda", 1)
    (volume.adapters / "yoda" / "traffic.json").write_text(content)
    assert registry.resolve("yoda").version == 1
