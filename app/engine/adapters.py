"""Which adapter versions are resident: loaded, judged by their first answer, pinned while used, evicted LRU."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from app.engine.adapter_loader import AdapterLoader, Key
from app.engine.stats import EngineStats
from app.lora.bank import LoraBank
from app.lora.host_tier import HostTier
from app.lora.reader import unusable
from app.lora.weights import LoraWeights
from core.adapter_version import AdapterVersion
from core.errors import InvalidError, UnavailableError


@dataclass(slots=True)
class _Resident:
    slot: int
    rank: int
    unproven: LoraWeights | None  # until its first answer was finite
    pins: int = 0
    last_used: float = 0.0
    is_rejected: bool = False


class ResidentAdapters:
    """Owned by the engine's thread, apart from what says otherwise.

    A version is known by its reference and its content: a number that is given out again is another adapter.
    """

    def __init__(
        self,
        bank: LoraBank,
        stats: EngineStats,
        *,
        wake: Callable[[], None],
        max_wait_s: float,
        host_bytes: int,
    ) -> None:
        """`wake()` is called once weights are here. `host_bytes`: of weights that are kept in host memory once they left
        the bank."""
        self._bank = bank
        self._stats = stats
        self._max_wait_s = max_wait_s
        self._tier = HostTier(host_bytes)
        self._loader = AdapterLoader(bank, self._tier, wake=wake)
        self._residents: dict[Key, _Resident] = {}
        # The smallest rank that found no room since an adapter was last left: many ask, at every step.
        self._too_large = math.inf

    @property
    def refs(self) -> list[str]:
        return [ref for ref, _ in list(self._residents)]

    def pin(self, version: AdapterVersion, waiting_since: float, *, is_counted: bool) -> int | None:
        """The slot of `version`, which stays until `unpin`; None while it is being read or finds no room.

        `is_counted`: whether finding it is a hit, as it is once for each request. Raises InvalidError
        `adapter_unusable`, or UnavailableError `adapters_busy` after the longest wait.
        """
        key = _key(version)
        self._loader.forget_abandoned()
        resident = self._residents.get(key)
        if resident is not None:
            self._stats.num_adapter_hits += is_counted
        else:
            resident = self._install(key, version, waiting_since)
            if resident is None:
                return None
        resident.pins += 1
        resident.last_used = time.monotonic()
        return resident.slot

    def unpin(self, version: AdapterVersion) -> None:
        key = _key(version)
        resident = self._residents[key]
        resident.pins -= 1
        if resident.is_rejected and not resident.pins:
            self._evict(key)
        self._too_large = math.inf

    def accept(self, version: AdapterVersion) -> None:
        """A pinned adapter gave a request a finite first token: its weights may be kept and loaded again."""
        key = _key(version)
        resident = self._residents[key]
        if resident.unproven is not None:
            self._tier.put(key, resident.unproven)
            self._stats.num_adapter_host_bytes = self._tier.num_bytes
            resident.unproven, resident.is_rejected = None, False

    def reject(self, version: AdapterVersion) -> InvalidError | None:
        """A pinned adapter gave a request a first token that was not finite: the error, if it is the adapter's fault.

        Weights that are finite can still overflow. One that never answered otherwise leaves once nobody uses it.
        """
        resident = self._residents[_key(version)]
        if resident.unproven is None:
            return None
        resident.is_rejected = True
        return unusable(["its weights are finite, but the model's answer with them is not"])

    def read(self, version: AdapterVersion) -> None:
        """Reads `version` now, so that it can be pinned even if its files are removed meanwhile. Any thread.

        Raises InvalidError `adapter_unusable`, or NotFoundError `adapter_not_found`.
        """
        key = _key(version)
        if key not in self._residents:
            self._loader.read(key, version, keep_s=self._max_wait_s)

    def check(self, folder: Path) -> None:
        """Raises InvalidError `adapter_unusable` where `folder` could not be made resident. Any thread."""
        self._loader.check(folder)

    def close(self) -> None:
        self._loader.close()

    def _install(self, key: Key, version: AdapterVersion, waiting_since: float) -> _Resident | None:
        delivery = self._loader.fetch(key, version)
        if delivery is None:
            return None
        weights = delivery.weights
        if not self._make_room(weights.rank):
            if time.monotonic() - waiting_since > self._max_wait_s:
                self._loader.drop(key)
                raise UnavailableError(
                    f"adapter {version.ref} found no room for its rank {weights.rank} in "
                    f"{self._max_wait_s:g} s: all {self._bank.width} columns are in use",
                    code="adapters_busy",
                    retry_after_s=5,
                )
            return None
        self._loader.drop(key)
        started = time.monotonic()
        if weights.data.is_cuda:
            # The uplink's stream must not have its memory back before this one has read it.
            weights.data.record_stream(torch.cuda.current_stream())
        slot = self._bank.load(weights)
        if version.is_checkpoint:
            self._drop_older(version)
        self._stats.num_adapter_loads += 1
        self._stats.num_adapter_host_hits += delivery.is_known
        self._stats.num_adapter_host_bytes = self._tier.num_bytes
        self._stats.adapter_read_seconds += delivery.read_s
        self._stats.adapter_load_seconds += time.monotonic() - started
        resident = _Resident(
            slot, weights.rank, unproven=None if delivery.is_known else delivery.kept
        )
        self._residents[key] = resident
        return resident

    def _drop_older(self, checkpoint: AdapterVersion) -> None:
        """Frees what earlier checkpoints of the same job hold, which a running one has left behind."""
        for key in {*self._residents, *self._tier}:
            name, _, step = key[0].rpartition("@")
            if name == checkpoint.name and int(step) < checkpoint.version:
                self._tier.drop(key)
                if key in self._residents and not self._residents[key].pins:
                    self._evict(key)

    def _make_room(self, rank: int) -> bool:
        """Evicts unused adapters, the longest unused first, until `rank` columns are free, or none at all."""
        if rank >= self._too_large:
            return False
        idle = sorted(
            (k for k, r in self._residents.items() if not r.pins),
            key=lambda k: self._residents[k].last_used,
        )
        if rank <= self._bank.num_free_columns + sum(self._residents[k].rank for k in idle):
            for key in idle:
                if self._bank.has_room(rank):
                    break
                self._evict(key)
        if not self._bank.has_room(rank):
            self._too_large = rank
            return False
        return True

    def _evict(self, key: Key) -> None:
        self._bank.unload(self._residents.pop(key).slot)
        self._stats.num_adapter_evictions += 1


def _key(version: AdapterVersion) -> Key:
    return version.ref, version.seal.content_sha256
