"""Which adapter versions are resident: read from the volume, checked, loaded, pinned while used, evicted LRU."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from app.engine.cpu_threads import stay_single_threaded
from app.engine.host_tier import HostTier, LoraWeights
from app.engine.lora_bank import LoraBank
from app.engine.lora_reader import read_lora, unusable
from app.engine.stats import EngineStats
from core.adapter_version import AdapterVersion
from core.errors import InvalidError, UnavailableError

# Weights that were read and wait for room lie outside the bounds of bank and host tier.
_MAX_READINGS = 8
_MAX_FORGOTTEN_S = 2.0  # a request that waits asks again at every step
_FORGET_INTERVAL_S = 0.1


@dataclass(slots=True)
class _Resident:
    slot: int
    rank: int
    unproven: LoraWeights | None  # until its first answer was finite
    pins: int = 0
    last_used: float = 0.0
    is_rejected: bool = False


@dataclass(slots=True)
class _Reading:
    """Files that are being read, or were and wait for room."""

    future: Future[LoraWeights]
    keep_until: float  # by the monotonic clock, unless somebody asks again


class ResidentAdapters:
    """Owned by the engine's thread, apart from reading files, which a loader thread does.

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
        """`wake()` is called once files are read. `host_bytes`: of weights that are kept in host memory once they left
        the bank."""
        self._bank = bank
        self._stats = stats
        self._wake = wake
        self._max_wait_s = max_wait_s
        self._tier = HostTier(host_bytes)
        self._residents: dict[tuple[str, str], _Resident] = {}
        # The smallest rank that found no room since an adapter was last left: many ask, at every step.
        self._too_large = math.inf
        self._reading: dict[tuple[str, str], _Reading] = {}
        self._forget_at = 0.0
        self._loader = ThreadPoolExecutor(
            1, thread_name_prefix="adapter-loader", initializer=stay_single_threaded
        )
        # Its thread begins now, before the engine's sets its own number.
        self._loader.submit(int).result()

    @property
    def refs(self) -> list[str]:
        return [ref for ref, _ in list(self._residents)]

    def pin(self, version: AdapterVersion, waiting_since: float, *, is_counted: bool) -> int | None:
        """The slot of `version`, which stays until `unpin`; None while it is being read or finds no room.

        `is_counted`: whether finding it is a hit, as it is once for each request. Raises InvalidError
        `adapter_unusable`, or UnavailableError `adapters_busy` after the longest wait.
        """
        key = _key(version)
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
        if key not in self._residents and key not in self._tier:
            self._forget_readings()
            reading = self._reading.get(key)
            reading = reading or self._start_reading(key, version, self._max_wait_s)
            try:
                reading.future.result()
            except Exception:  # memory ran out, say: the next request may have better luck
                self._reading.pop(key, None)
                raise

    def check(self, folder: Path) -> None:
        """Raises InvalidError `adapter_unusable` where `folder` could not be made resident. Any thread."""
        self._loader.submit(read_lora, folder, self._bank).result()

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _install(
        self, key: tuple[str, str], version: AdapterVersion, waiting_since: float
    ) -> _Resident | None:
        weights = self._tier.get(key)
        is_known = weights is not None
        if weights is None:
            reading = self._reading.get(key)
            if reading is None:
                if time.monotonic() >= self._forget_at:
                    self._forget_readings()
                if len(self._reading) >= _MAX_READINGS:
                    return None
                reading = self._start_reading(key, version)
            reading.keep_until = max(reading.keep_until, time.monotonic() + _MAX_FORGOTTEN_S)
            if not reading.future.done():
                return None
            if reading.future.exception() is not None:
                self._reading.pop(key, None)  # the next request may have better luck
            weights = reading.future.result()
        if not self._make_room(weights.rank):
            if time.monotonic() - waiting_since > self._max_wait_s:
                self._reading.pop(key, None)
                raise UnavailableError(
                    f"adapter {version.ref} found no room for its rank {weights.rank} in "
                    f"{self._max_wait_s:g} s: all {self._bank.width} columns are in use",
                    code="adapters_busy",
                    retry_after_s=5,
                )
            return None
        self._reading.pop(key, None)
        started = time.monotonic()
        slot = self._bank.load(weights.rank, weights.sites)
        if version.is_checkpoint:
            self._drop_older(version)
        self._stats.num_adapter_loads += 1
        self._stats.num_adapter_host_hits += is_known
        self._stats.num_adapter_host_bytes = self._tier.num_bytes
        self._stats.adapter_load_seconds += time.monotonic() - started
        resident = _Resident(slot, weights.rank, unproven=None if is_known else weights)
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

    def _start_reading(
        self, key: tuple[str, str], version: AdapterVersion, keep_s: float = 0.0
    ) -> _Reading:
        future = self._loader.submit(self._read, version.path)
        reading = self._reading[key] = _Reading(future, time.monotonic() + keep_s)
        future.add_done_callback(lambda _: self._wake())
        return reading

    def _forget_readings(self) -> None:
        """Weights that nobody fetched, since who asked for them has gone, must not stay in memory."""
        now = time.monotonic()
        self._forget_at = now + _FORGET_INTERVAL_S
        for key, reading in list(self._reading.items()):
            if reading.future.done() and reading.keep_until < now:
                self._reading.pop(key, None)

    def _read(self, folder: Path) -> LoraWeights:
        started = time.monotonic()
        try:
            return read_lora(folder, self._bank)
        finally:
            self._stats.adapter_read_seconds += time.monotonic() - started

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

    def _evict(self, key: tuple[str, str]) -> None:
        self._bank.unload(self._residents.pop(key).slot)
        self._stats.num_adapter_evictions += 1


def _key(version: AdapterVersion) -> tuple[str, str]:
    return version.ref, version.seal.content_sha256
