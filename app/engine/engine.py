"""One thread owns the model. Each turn it admits what fits, runs one step for all sequences, and delivers tokens."""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from app.engine.adapters import ResidentAdapters
from app.engine.cpu_threads import EngineThreads, num_processors
from app.engine.runner import Runner
from app.engine.scheduler import Admission, Scheduler
from app.engine.sequence import FinishReason, Sequence, Update
from app.engine.stats import EngineStats
from app.model.base import BaseModel
from app.model.forward import PROBE_TOKENS, Forward
from core.adapter_version import AdapterVersion
from core.errors import InvalidError, ServiceError, UnavailableError
from core.memory import free_host_bytes

logger = logging.getLogger(__name__)

# A GPU reads every column at every step; on a CPU one that nobody uses costs nothing, not even memory.
_LORA_WIDTHS = {"cpu": 512, "cuda": 128}


@dataclass(frozen=True, slots=True)
class EngineLimits:
    max_running: int
    max_waiting: int
    max_prefill_tokens: int
    kv_cache_tokens: int  # 0: chosen from free memory
    lora_width: int  # 0: chosen by the device
    max_adapters: int
    adapter_wait_s: float
    adapter_memory_mb: int  # of adapters kept in host memory; 0: chosen from free memory
    num_threads: int  # of the engine on a CPU; 0: one for each core


class Engine:
    """Generates for many sequences at once. `submit` and `cancel` may be called from any thread."""

    def __init__(self, model: BaseModel, limits: EngineLimits) -> None:
        self._model = model
        self._limits = limits
        self._num_threads = limits.num_threads or num_processors()
        self._bank = model.create_bank(
            width=limits.lora_width or _LORA_WIDTHS[model.device.type],
            num_slots=limits.max_adapters,
        )
        self._cache = model.create_cache(limits.kv_cache_tokens)
        self._forward = Forward(
            model,
            self._bank,
            self._cache,
            max_tokens=limits.max_running + limits.max_prefill_tokens,
            max_rows=limits.max_running,
        )
        self._scheduler = Scheduler(
            max_running=limits.max_running, max_prefill_tokens=limits.max_prefill_tokens
        )
        self._stats = EngineStats()
        self._adapters = ResidentAdapters(
            self._bank,
            self._stats,
            wake=self._wake,
            max_wait_s=limits.adapter_wait_s,
            host_bytes=limits.adapter_memory_mb << 20 or free_host_bytes() // 4,
        )
        self._runner = Runner(self._forward, self._stats)
        # Everything below is shared between threads and touched only under the condition.
        self._condition = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._num_queued = 0  # inbox and scheduler's queue together
        self._woken = False
        self._stopping = False
        self._draining = False
        self._device_fault: str | None = None
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
    def fault(self) -> str | None:
        """Why nothing is served any more; None while it is."""
        if self._device_fault is None and not self._thread.is_alive():
            return "the engine's thread has ended"
        return self._device_fault

    @property
    def way(self) -> str:
        """How the forward pass is computed, in words."""
        return self._forward.way

    @property
    def target_modules(self) -> list[str]:
        """Names of the linear layers that an adapter may target, such as `qkv_proj`."""
        return sorted({name.rpartition(".")[2] for name in self._bank.sites})

    @property
    def hidden_size(self) -> int:
        """The base model's width, in features."""
        return self._model.hidden_size

    @property
    def max_tokens(self) -> int:
        """Most tokens of prompt plus output that one sequence may come to."""
        return min(self._model.max_context, self._cache.regions.capacity - PROBE_TOKENS)

    @property
    def max_rank(self) -> int:
        """The largest rank that an adapter may have."""
        return self._bank.width

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

    def read_adapter(self, version: AdapterVersion) -> None:
        """Reads `version` for a request to come, even if its files are removed before. Any thread.

        Raises InvalidError `adapter_unusable`, or NotFoundError `adapter_not_found` where they are gone already.
        """
        self._adapters.read(version)

    def check_adapter(self, folder: Path) -> None:
        """Raises InvalidError `adapter_unusable` where the PEFT folder could not be served. Any thread."""
        self._adapters.check(folder)

    def stats(self) -> EngineStats:
        stats = self._stats
        stats.num_running = len(self._scheduler.running)
        stats.num_waiting = self._num_queued
        stats.num_free_cache_tokens = self._cache.regions.num_free
        stats.num_free_lora_columns = self._bank.num_free_columns
        return stats

    def submit(self, *sequences: Sequence) -> None:
        """Queues sequences, all or none; their sinks hear of them.

        Raises InvalidError `text_too_long` or `prompt_invalid`, or UnavailableError `queue_full` or `stopping`.
        """
        for sequence in sequences:
            self._check(sequence)
        with self._condition:
            if self._draining or self.fault:
                raise self._end()
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
        threads = EngineThreads(self._num_threads)
        is_cpu = self._model.device.type == "cpu"
        while self._device_fault is None and self._wait_for_work():
            started_s, computed_s = time.monotonic(), time.thread_time()
            try:
                self._turn()
            except Exception as error:
                # The loop's edge: one step's failure must not end the service.
                logger.exception("a step failed")
                self._fail_running(error)
                self._device_fault = self._find_device_fault()
            if is_cpu:
                threads.note(time.monotonic() - started_s, time.thread_time() - computed_s)
        self._fail_all(self._end())

    def _end(self) -> UnavailableError:
        """What is told to those who come too late."""
        if self._device_fault is not None:
            return UnavailableError(self._device_fault, code="not_ready", retry_after_s=5)
        return UnavailableError("the server is shutting down", code="stopping")

    def _find_device_fault(self) -> str | None:
        try:
            self._model.check_device()
        except RuntimeError as error:
            logger.critical("the device computes nothing any more: %s", error)
            reason = str(error).partition("\n")[0]
            return f"the device computes nothing until the server is restarted: {reason}"
        return None

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
        for sequence, token_id in self._runner.run(self._scheduler.plan()):
            self._advance(sequence, token_id)

    def _count_queued(self) -> None:
        with self._condition:
            self._num_queued = len(self._inbox) + self._scheduler.num_waiting
            if self._draining:
                self._condition.notify_all()

    def _place(self, sequence: Sequence) -> Admission:
        """Finds a sequence its adapter and its room in the KV cache."""
        if sequence.adapter is not None:
            try:
                slot = self._adapters.pin(
                    sequence.adapter,
                    sequence.waiting_since,
                    # A slot that it has already is of an earlier turn, when the cache had no room.
                    is_counted=not sequence.slot,
                )
            except ServiceError as error:
                return self._refuse(sequence, error)
            except Exception as error:  # whatever was wrong with one adapter, the others run on
                self._model.check_device()  # or they do not
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

    def _advance(self, sequence: Sequence, token_id: int) -> None:
        self._stats.num_generated_tokens += 1
        if token_id < 0:
            self._finish(sequence, FinishReason.ERROR, self._why_not_finite(sequence))
            return
        if sequence.adapter is not None and not sequence.output_ids:
            self._adapters.accept(sequence.adapter)
        reason = sequence.append(token_id)
        if reason is not None:
            self._finish(sequence, reason)
        elif sequence.streaming:
            self._deliver(sequence, Update([token_id]))

    def _why_not_finite(self, sequence: Sequence) -> InvalidError:
        if sequence.adapter is not None and not sequence.output_ids:
            error = self._adapters.reject(sequence.adapter)
            if error is not None:
                return error
        return InvalidError(
            "the model's answer to this text was not finite; try another text or adapter",
            code="not_finite",
        )

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
        self._runner.forget(sequence)
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
        self._runner.clear()
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
