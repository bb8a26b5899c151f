"""Brings adapters' weights to where the bank lies, off the engine's thread: from the volume, or from host memory."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from app.engine.cpu_threads import num_processors, stay_single_threaded
from app.lora.bank import LoraBank
from app.lora.host_tier import HostTier
from app.lora.reader import read_lora
from app.lora.uplink import Uplink
from app.lora.weights import LoraWeights
from core.adapter_version import AdapterVersion

# Weights that are here and wait for room lie outside the bounds of bank and host tier. Of what host memory has there may be
# as many again: it waits for no file.
_MAX_UNDER_WAY = 8
_MAX_FORGOTTEN_S = 2.0  # a request that waits asks again at every step
_FORGET_INTERVAL_S = 0.1
# More contend for the interpreter; on a CPU, with the engine for processors.
_NUM_GPU_READERS = 2

Key = tuple[str, str]  # an adapter version's reference, and its content


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came of reading an adapter, or of fetching it from host memory."""

    weights: LoraWeights  # on the bank's device, unless that has no memory left
    kept: LoraWeights  # the same, in host memory
    is_known: bool  # it was in host memory already
    read_s: float = 0.0


@dataclass(slots=True)
class _Errand:
    """Weights that are under way, or are here and wait for room."""

    future: Future[Delivery]
    keep_until: float  # by the monotonic clock, unless somebody asks again


class AdapterLoader:
    """`fetch` and `drop` belong to the engine's thread."""

    def __init__(self, bank: LoraBank, tier: HostTier, *, wake: Callable[[], None]) -> None:
        """`wake()` is called once weights are here."""
        self._bank = bank
        self._tier = tier
        self._wake = wake
        self._reads: dict[Key, _Errand] = {}
        self._sends: dict[Key, _Errand] = {}  # of what host memory has
        self._forget_at = 0.0
        self._uplink = Uplink(bank.device) if bank.device.type == "cuda" else None
        num_readers = 1 if self._uplink is None else min(_NUM_GPU_READERS, num_processors())
        self._readers = ThreadPoolExecutor(
            num_readers, thread_name_prefix="adapter-reader", initializer=stay_single_threaded
        )
        # On a CPU its thread begins now, before the engine's sets its own number.
        self._readers.submit(int).result()
        # What host memory has does not stand behind files of a slow volume.
        self._sender = ThreadPoolExecutor(
            1, thread_name_prefix="adapter-sender", initializer=stay_single_threaded
        )

    def fetch(self, key: Key, version: AdapterVersion) -> Delivery | None:
        """What the bank is to load, again and again until `drop`; None while it is under way.

        Raises what `read_lora` raises.
        """
        errand = self._reads.get(key) or self._sends.get(key)
        if errand is None:
            kept = self._tier.get(key)
            if kept is not None and self._uplink is None:
                return Delivery(kept, kept, is_known=True)
            if len(self._reads if kept is None else self._sends) >= _MAX_UNDER_WAY:
                return None
            errand = self._start(key, version, kept)
        errand.keep_until = max(errand.keep_until, time.monotonic() + _MAX_FORGOTTEN_S)
        if not errand.future.done():
            return None
        if errand.future.exception() is not None:
            self.drop(key)  # the next request may have better luck
        return errand.future.result()

    def drop(self, key: Key) -> None:
        """What was fetched is loaded, or nobody wants it any more."""
        self._reads.pop(key, None)
        self._sends.pop(key, None)

    def read(self, key: Key, version: AdapterVersion, keep_s: float) -> None:
        """Reads `version` now and keeps it for so long, unless host memory has it. Any thread.

        Raises what `read_lora` raises.
        """
        if key in self._tier:
            return
        errand = self._reads.get(key) or self._start(key, version, None)
        errand.keep_until = max(errand.keep_until, time.monotonic() + keep_s)
        try:
            errand.future.result()
        except Exception:  # memory ran out, say: the next request may have better luck
            self.drop(key)
            raise

    def check(self, folder: Path) -> None:
        """Raises InvalidError `adapter_unusable` where `folder` could not be loaded. Any thread."""
        self._readers.submit(read_lora, folder, self._bank).result()

    def close(self) -> None:
        for threads in (self._readers, self._sender):
            threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, key: Key, version: AdapterVersion, kept: LoraWeights | None) -> _Errand:
        if kept is None:
            future = self._readers.submit(self._read_and_send, version.path)
            errand = self._reads[key] = _Errand(future, time.monotonic())
        else:
            future = self._sender.submit(self._send, kept, is_known=True)
            errand = self._sends[key] = _Errand(future, time.monotonic())
        future.add_done_callback(lambda _: self._wake())
        return errand

    def _read_and_send(self, folder: Path) -> Delivery:
        started = time.monotonic()
        weights = read_lora(folder, self._bank)
        return self._send(weights, is_known=False, read_s=time.monotonic() - started)

    def _send(self, kept: LoraWeights, *, is_known: bool, read_s: float = 0.0) -> Delivery:
        weights = kept
        if self._uplink is not None:
            weights = LoraWeights(kept.layout, self._uplink.send(kept.data))
        return Delivery(weights, kept, is_known, read_s)

    def forget_abandoned(self) -> None:
        """Weights that nobody fetched, since who asked for them has gone, must not stay in memory. Cheap; call it often."""
        now = time.monotonic()
        if now < self._forget_at:
            return
        self._forget_at = now + _FORGET_INTERVAL_S
        for errands in (self._reads, self._sends):
            for key, errand in list(errands.items()):
                if errand.future.done() and errand.keep_until < now:
                    errands.pop(key, None)
