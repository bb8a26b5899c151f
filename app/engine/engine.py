"""One thread owns the model. Each turn it admits what fits, runs one step for all sequences, and delivers tokens."""

import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from app.engine.adapters import ResidentAdapters
from app.engine.forward import PROBE_TOKENS, Forward, probe_ids
from app.engine.model import BaseModel
from app.engine.sampling import Likeliest, Sampler, choose_likeliest, is_drawn
from app.engine.scheduler import Admission, Scheduler, Work
from app.engine.sequence import FinishReason, Sequence, Update
from app.engine.step import Span, Step
from core.errors import InvalidError, ServiceError, UnavailableError
from core.adapters import AdapterVersion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    max_running: int
    max_waiting: int
    max_prefill_tokens: int
    kv_cache_tokens: int  # 0: chosen from free memory
    lora_width: int
    max_adapters: int
    adapter_wait_s: float
    adapter_memory_mb: int  # of adapters' weights kept in host memory, MiB
    num_threads: int  # of the engine on a CPU; 0: one for each core


@dataclass(slots=True)
class EngineStats:
    """Counters since the start, and gauges."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_free_cache_tokens: int = 0
    num_free_lora_columns: int = 0
    num_adapter_loads: int = 0
    num_adapter_evictions: int = 0
    num_adapter_hits: int = 0  # requests that found their adapter in the bank
    num_adapter_host_hits: int = 0  # loads that needed no read from the volume
    num_adapter_host_bytes: int = 0
    adapter_load_seconds: float = 0.0
    adapter_read_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was asked for, whose tokens may not be here yet."""

    sequences: list[Sequence]  # those that get a token
    likeliest: Likeliest
    logits: torch.Tensor | None  # where some sequence wants its token drawn


class Engine:
    """Generates for many sequences at once. `submit` and `cancel` may be called from any thread."""

    def __init__(self, model: BaseModel, limits: EngineLimits) -> None:
        self._model = model
        self._limits = limits
        self._num_threads = limits.num_threads or _num_processors()
        self._bank = model.create_bank(width=limits.lora_width, num_slots=limits.max_adapters)
        self._cache = model.create_cache(limits.kv_cache_tokens)
        self._probe_region = self._allocate_probe_region()
        self._forward = Forward(
            model,
            self._bank,
            self._cache,
            probe_region=self._probe_region,
            max_tokens=limits.max_running + limits.max_prefill_tokens,
            max_rows=limits.max_running,
        )
        self._scheduler = Scheduler(
            max_running=limits.max_running, max_prefill_tokens=limits.max_prefill_tokens
        )
        self._adapters = ResidentAdapters(
            self._bank,
            probe=self._probe,
            wake=self._wake,
            max_wait_s=limits.adapter_wait_s,
            host_bytes=limits.adapter_memory_mb << 20,
        )
        self._sampler = Sampler()
        self._flights: deque[_Flight] = deque()
        self._stats = EngineStats()
        # Everything below is shared between threads and touched only under the condition.
        self._condition = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._num_queued = 0  # inbox and scheduler's queue together
        self._woken = False
        self._stopping = False
        self._draining = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Any thread

    def start(self) -> None:
        self._thread.start()

    def stop(self, grace_s: float = 0.0) -> None:
        """Refuses new sequences, lets running and waiting ones finish within `grace_s`, then ends the thread."""
        deadline = time.monotonic() + grace_s
        with self._condition:
            self._draining = True
            while (self._num_queued or self._scheduler.running) and time.monotonic() < deadline:
                self._condition.wait(0.05)
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._adapters.close()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def way(self) -> str:
        """How the forward pass is computed, in words."""
        return self._forward.way

    @property
    def target_modules(self) -> list[str]:
        """Names of the linear layers that an adapter may target, such as `qkv_proj`."""
        return sorted({name.rpartition(".")[2] for name in self._bank.sites})

    @property
    def read_adapter(self, version: AdapterVersion) -> None:
        """Reads `version` for a request to come, even if its files are removed before. Any thread.

        Raises InvalidError `adapter_unusable`, or NotFoundError `adapter_not_found` where they are gone already.
        """
        self._adapters.read(version)

    def hidden_size(self) -> int:
        """The base model's width, in features."""
        return self._model.hidden_size

    @property
    def max_tokens(self) -> int:
        """Most tokens of prompt plus output that one sequence may come to."""
        return min(self._model.max_context, self._cache.regions.capacity - PROBE_TOKENS)

    @property
    def resident_adapters(self) -> list[str]:
        return self._adapters.refs

    @property
    def adapter_sites(self) -> dict[str, tuple[int, int]]:
        """Name of each linear layer that an adapter may target -> (in features, out features)."""
        return {
            name: (site.base.in_features, site.base.out_features)
            for name, site in self._bank.sites.items()
        }

    def check_adapter(self, folder: Path) -> None:
        """Raises InvalidError `adapter_unusable` where the PEFT folder could not be served. Any thread."""
        self._adapters.check(folder)

    def stats(self) -> EngineStats:
        stats = self._stats
        stats.num_running = len(self._scheduler.running)
        stats.num_waiting = self._num_queued
        stats.num_free_cache_tokens = self._cache.regions.num_free
        stats.num_free_lora_columns = self._bank.num_free_columns
        stats.num_adapter_loads = self._adapters.num_loads
        stats.num_adapter_evictions = self._adapters.num_evictions
        stats.num_adapter_hits = self._adapters.num_hits
        stats.num_adapter_host_hits = self._adapters.num_host_hits
        stats.num_adapter_host_bytes = self._adapters.num_host_bytes
        stats.adapter_load_seconds = self._adapters.load_s
        stats.adapter_read_seconds = self._adapters.read_s
        return stats

    def submit(self, *sequences: Sequence) -> None:
        """Queues sequences, all or none; their sinks hear of them.

        Raises InvalidError `text_too_long` or `prompt_invalid`, or UnavailableError `queue_full` or `stopping`.
        """
        for sequence in sequences:
            self._check(sequence)
        with self._condition:
            if self._draining or not self._thread.is_alive():
                raise UnavailableError("the server is shutting down", code="stopping")
            if self._num_queued + len(sequences) > self._limits.max_waiting:
                raise UnavailableError(
                    f"{self._num_queued} texts are waiting already, of at most "
                    f"{self._limits.max_waiting}; {len(sequences)} more do not fit",
                    code="queue_full",
                )
            now = time.monotonic()
            for sequence in sequences:
                sequence.waiting_since = now
            self._inbox.extend(sequences)
            self._num_queued += len(sequences)
            self._condition.notify_all()

    def cancel(self, *sequences: Sequence) -> None:
        """Frees the sequences' places before the next step. No further update comes."""
        for sequence in sequences:
            sequence.cancelled = True
        self._wake()

    def _check(self, sequence: Sequence) -> None:
        if sequence.max_tokens > self.max_tokens:
            raise InvalidError(
                f"the text comes to {len(sequence.prompt_ids)} tokens with its prompt; with "
                f"max_new_tokens={sequence.params.max_new_tokens} that is over the "
                f"{self.max_tokens} tokens that fit",
                code="text_too_long",
            )
        ids = sequence.prompt_ids
        if not ids or min(ids) < 0 or max(ids) >= self._model.vocab_size:
            raise InvalidError(
                f"a prompt must be 1 or more token ids below {self._model.vocab_size}",
                code="prompt_invalid",
            )

    def _wake(self) -> None:
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    # The engine's thread

    def _run(self) -> None:
        # Only here does torch use several threads: see stay_single_threaded.
        torch.set_num_threads(self._num_threads)
        while self._wait_for_work():
            try:
                self._turn()
            except Exception as error:
                # The loop's edge: one step's failure must not end the service.
                logger.exception("a step failed")
                self._fail_running(error)
        self._fail_all(UnavailableError("the server is shutting down", code="stopping"))

    def _wait_for_work(self) -> bool:
        with self._condition:
            while not (self._inbox or self._scheduler.running or self._woken or self._stopping):
                # With somebody waiting for room in the bank, look again before its patience ends.
                self._condition.wait(0.1 if self._scheduler.num_waiting else None)
                if self._scheduler.num_waiting:
                    break
            self._woken = False
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            return not self._stopping

    def _turn(self) -> None:
        for sequence in self._scheduler.drop_cancelled():
            self._release(sequence)
        self._scheduler.admit(self._place)
        self._count_queued()
        work = self._scheduler.plan()
        if work:
            self._launch(work)
        # A GPU gets its next step before the tokens of the last one are looked at.
        is_ahead = work and self._forward.is_asynchronous and self._flights[-1].logits is None
        while len(self._flights) > bool(is_ahead):
            self._land(self._flights.popleft())

    def _count_queued(self) -> None:
        with self._condition:
            self._num_queued = len(self._inbox) + self._scheduler.num_waiting
            if self._draining:
                self._condition.notify_all()

    def _place(self, sequence: Sequence) -> Admission:
        """Finds a sequence its adapter and its room in the KV cache."""
        if sequence.adapter is not None:
            try:
                slot = self._adapters.pin(sequence.adapter, sequence.waiting_since)
            except ServiceError as error:
                return self._refuse(sequence, error)
            except Exception as error:  # whatever was wrong with one adapter, the others run on
                logger.exception("adapter %s could not be loaded", sequence.adapter.ref)
                message = f"the adapter could not be loaded: {error}"
                return self._refuse(sequence, UnavailableError(message, code="adapter_load_failed"))
            if slot is None:
                return Admission.ADAPTER_NOT_READY
            sequence.slot = slot
        start = self._cache.regions.allocate(sequence.max_tokens)
        if start is None:
            if sequence.adapter is not None:
                self._adapters.unpin(sequence.adapter)
            return Admission.NO_ROOM
        sequence.region_start = start
        return Admission.ADMITTED

    def _refuse(self, sequence: Sequence, error: ServiceError) -> Admission:
        self._deliver_end(sequence, FinishReason.ERROR, error)
        return Admission.FAILED

    def _launch(self, work: list[Work]) -> None:
        work.sort(
            key=lambda w: w.sequence.slot
        )  # neighbours then read the same columns of the bank
        carried = self._flights[-1].likeliest.token_ids if self._flights else None
        logits = self._forward.run(_build_step(work), carried)
        generating = [w.sequence for w in work if w.yields_token]
        for item in work:
            if not item.sequence.num_outputs:
                self._stats.num_prompt_tokens += item.num_tokens
            item.sequence.num_computed += item.num_tokens
        for row, sequence in enumerate(generating):
            sequence.row = row
        is_any_drawn = any(is_drawn(s.params) for s in generating)
        self._flights.append(
            _Flight(generating, choose_likeliest(logits), logits if is_any_drawn else None)
        )
        self._stats.num_steps += 1

    def _land(self, flight: _Flight) -> None:
        """Hands a step's tokens to its sequences, but for those that ended while it was under way."""
        token_ids = flight.likeliest.wait()
        sequences = flight.sequences
        if flight.logits is not None:
            token_ids = self._sampler.draw(
                flight.logits, token_ids, [s.params for s in sequences], [id(s) for s in sequences]
            )
        is_newest = not self._flights
        for sequence, token_id in zip(sequences, token_ids, strict=True):
            if not sequence.is_over:
                if is_newest:
                    sequence.row = None
                self._stats.num_generated_tokens += 1
                self._advance(sequence, token_id)

    def _advance(self, sequence: Sequence, token_id: int) -> None:
        if token_id < 0:
            self._finish(
                sequence,
                FinishReason.ERROR,
                InvalidError(
                    "the model's answer to this text was not finite; try another text or adapter",
                    code="not_finite",
                ),
            )
            return
        reason = sequence.append(token_id)
        if reason is not None:
            self._finish(sequence, reason)
        elif sequence.streaming:
            self._deliver(sequence, Update([token_id]))

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: ServiceError | None = None
    ) -> None:
        self._scheduler.running.remove(sequence)
        self._release(sequence)
        self._deliver_end(sequence, reason, error)

    def _release(self, sequence: Sequence) -> None:
        # A step that is under way may still write there; whatever the next owner writes comes after it.
        self._cache.regions.release(sequence.region_start, sequence.max_tokens)
        sequence.is_over = True
        self._sampler.forget(id(sequence))
        if sequence.adapter is not None:
            self._adapters.unpin(sequence.adapter)
        if sequence.cancelled:
            self._stats.num_cancelled += 1

    def _deliver_end(
        self, sequence: Sequence, reason: FinishReason, error: ServiceError | None = None
    ) -> None:
        if reason is FinishReason.ERROR:
            self._stats.num_failed += 1
        else:
            self._stats.num_finished += 1
        self._deliver(sequence, Update(list(sequence.output_ids), reason, error))

    def _deliver(self, sequence: Sequence, update: Update) -> None:
        try:
            sequence.sink(update)
        except RuntimeError:  # the listener's event loop is closed
            sequence.cancelled = True

    def _fail_running(self, error: Exception) -> None:
        """After a failed step nobody knows whose keys and values are right: those that ran must be asked again."""
        self._flights.clear()
        message = f"a step of the model failed ({type(error).__name__}); try again"
        for sequence in list(self._scheduler.running):
            self._finish(
                sequence, FinishReason.ERROR, UnavailableError(message, code="step_failed")
            )

    def _fail_all(self, error: ServiceError) -> None:
        for sequence in list(self._scheduler.running):
            self._finish(sequence, FinishReason.ERROR, error)
        with self._condition:
            left = [*self._scheduler.take_waiting(), *self._inbox]
            self._inbox.clear()
            self._num_queued = 0
        for sequence in left:
            self._deliver_end(sequence, FinishReason.ERROR, error)

    def _allocate_probe_region(self) -> int:
        start = self._cache.regions.allocate(PROBE_TOKENS)
        if start is None:
            raise ServiceError(
                f"a key/value store of {self._cache.regions.capacity} tokens is too small",
                code="kv_cache_too_small",
            )
        return start

    def _probe(self, slot: int) -> bool:
        """Whether an adapter that was just loaded answers with finite logits. One short forward pass."""
        step = Step(
            token_ids=probe_ids(self._model.vocab_size),
            sources=[-1] * PROBE_TOKENS,
            positions=list(range(PROBE_TOKENS)),
            slots=[slot] * PROBE_TOKENS,
            spans=[Span(0, PROBE_TOKENS, 0, self._probe_region)],
            last_rows=list(range(PROBE_TOKENS)),
        )
        return bool(self._forward.run(step).isfinite().all())


def _num_processors() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _build_step(work: list[Work]) -> Step:
    step = Step()
    for item in work:
        sequence, count = item.sequence, item.num_tokens
        start = len(step.token_ids)
        step.token_ids.extend(sequence.pending_ids(count))
        step.sources.extend([-1 if sequence.row is None else sequence.row] * count)
        step.positions.extend(range(sequence.num_computed, sequence.num_computed + count))
        step.slots.extend([sequence.slot] * count)
        step.spans.append(Span(start, count, sequence.num_computed, sequence.region_start))
        if item.yields_token:
            step.last_rows.append(start + count - 1)
    return step
