"""Weights come from the volume or from host memory, off the engine's thread, and stay no longer than somebody wants them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.engine.adapter_loader import AdapterLoader, Delivery, Key
from app.lora.bank import LoraBank
from app.lora.host_tier import HostTier
from app.lora.reader import read_lora
from core.adapter_version import AdapterVersion
from core.errors import InvalidError
from tests.app.harness import load_nf4, make_adapter, wait_until
from tests.app.tiny import Tiny


@pytest.fixture(scope="module")
def bank(tiny: Tiny) -> LoraBank:
    return load_nf4(tiny.folder).create_bank(width=8, num_slots=3)


@pytest.fixture
def tier() -> HostTier:
    return HostTier(1 << 20)


@pytest.fixture
def loader(bank: LoraBank, tier: HostTier) -> Iterator[AdapterLoader]:
    loader = AdapterLoader(bank, tier, wake=lambda: None)
    yield loader
    loader.close()


@pytest.fixture
def version(tiny: Tiny, tmp_path: Path) -> AdapterVersion:
    return make_adapter(tmp_path, tiny.reference, "a", r=2, target_modules=["o_proj"])


def key_of(version: AdapterVersion) -> Key:
    return version.ref, version.seal.content_sha256


def fetched(loader: AdapterLoader, version: AdapterVersion) -> Delivery:
    wait_until(lambda: loader.fetch(key_of(version), version) is not None)
    delivery = loader.fetch(key_of(version), version)
    assert delivery is not None
    return delivery


def test_files_are_read_beside_the_caller(
    loader: AdapterLoader,
    bank: LoraBank,
    version: AdapterVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []

    def note(folder: Path, bank: LoraBank) -> object:
        threads.append(threading.current_thread())
        return read_lora(folder, bank)

    monkeypatch.setattr("app.engine.adapter_loader.read_lora", note)
    delivery = fetched(loader, version)
    assert not delivery.is_known
    assert delivery.read_s > 0
    assert len(threads) == 1, "what was fetched is delivered again, not read again"
    assert threads[0] is not threading.current_thread()
    assert delivery.weights.rank == 2
    for pair, expected in zip(
        delivery.weights.sites.values(), read_lora(version.path, bank).sites.values(), strict=True
    ):
        assert all(torch.equal(*both) for both in zip(pair, expected, strict=True))


def test_host_memory_comes_before_the_volume(
    loader: AdapterLoader, tier: HostTier, version: AdapterVersion
) -> None:
    kept = fetched(loader, version).kept
    loader.drop(key_of(version))
    tier.put(key_of(version), kept)
    for file in version.path.iterdir():
        file.unlink()
    delivery = fetched(loader, version)
    assert delivery.is_known
    assert delivery.kept is kept
    assert delivery.read_s == 0


def test_a_read_that_failed_is_tried_again(
    loader: AdapterLoader, version: AdapterVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("app.engine.adapter_loader.read_lora", fail)
        with pytest.raises(MemoryError):
            loader.read(key_of(version), version, keep_s=10)
        with pytest.raises(MemoryError):
            fetched(loader, version)
    loader.read(key_of(version), version, keep_s=10)
    assert loader.fetch(key_of(version), version) is not None


def test_an_adapter_that_does_not_fit_is_refused_and_forgotten(
    loader: AdapterLoader, tiny: Tiny, tmp_path: Path
) -> None:
    wide = make_adapter(tmp_path, tiny.reference, "wide", r=9, target_modules=["o_proj"])
    with pytest.raises(InvalidError, match="rank 9"):
        loader.check(wide.path)
    with pytest.raises(InvalidError, match="rank 9"):
        fetched(loader, wide)
    assert not loader._reads


class FakeUplink:
    """Copies as the real one does, to where a CPU has its bank."""

    def __init__(self) -> None:
        self.num_sent = 0

    def send(self, data: torch.Tensor) -> torch.Tensor:
        self.num_sent += 1
        return data.clone()


@pytest.fixture
def linked(loader: AdapterLoader) -> AdapterLoader:
    """As beside a GPU."""
    loader._uplink = FakeUplink()  # type: ignore[assignment]
    return loader


def test_what_is_sent_is_what_was_read(
    linked: AdapterLoader, tier: HostTier, version: AdapterVersion
) -> None:
    for is_known in (False, True):
        delivery = fetched(linked, version)
        assert delivery.is_known == is_known
        assert delivery.weights.data is not delivery.kept.data
        assert torch.equal(delivery.weights.data, delivery.kept.data)
        linked.drop(key_of(version))
        tier.put(key_of(version), delivery.kept)
    assert linked._uplink.num_sent == 2  # type: ignore[union-attr]


def test_host_memory_does_not_stand_behind_slow_files(
    linked: AdapterLoader,
    tier: HostTier,
    version: AdapterVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tier.put(key_of(version), fetched(linked, version).kept)
    linked.drop(key_of(version))
    release = threading.Event()

    def wait(folder: Path, bank: LoraBank) -> object:
        assert release.wait(60)
        return read_lora(folder, bank)

    monkeypatch.setattr("app.engine.adapter_loader.read_lora", wait)
    try:
        for i in range(20):
            assert linked.fetch((f"slow{i}", ""), version) is None
        assert len(linked._reads) == 8
        assert fetched(linked, version).is_known
    finally:
        release.set()


def test_a_read_keeps_what_a_request_had_asked_for(
    loader: AdapterLoader, version: AdapterVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(loader, version)
    loader.read(key_of(version), version, keep_s=100)
    later = time.monotonic() + 50
    monkeypatch.setattr(time, "monotonic", lambda: later)
    loader.forget_abandoned()
    assert list(loader._reads) == [key_of(version)]


def test_weights_that_nobody_fetches_do_not_stay(
    loader: AdapterLoader,
    tiny: Tiny,
    tmp_path: Path,
    version: AdapterVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = make_adapter(tmp_path, tiny.reference, "b", r=2, target_modules=["o_proj"])
    loader.read(key_of(version), version, keep_s=0)
    later = time.monotonic() + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    loader.read(key_of(other), other, keep_s=10)
    loader.forget_abandoned()
    assert list(loader._reads) == [key_of(other)]
