"""Which sequences run in the next step: admission, fairness, the share of prompt tokens. Plain Python.

Iteration-level scheduling (Yu et al. 2022, "Orca", OSDI): sequences join and leave between any two steps.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from app.engine.sequence import Sequence


class Admission(Enum):
    """What came of trying to place a sequence."""

    ADMITTED = auto()
    ADAPTER_NOT_READY = auto()  # others may pass it meanwhile
    NO_ROOM = auto()  # nobody may pass it, or a long sequence would wait for ever
    FAILED = auto()  # it has been told and is gone


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's part of a step: `num_tokens` of its pending tokens."""

    sequence: Sequence
    num_tokens: int

    @property
    def yields_token(self) -> bool:
        """Whether the model will have seen all that is known, so that its logits give a new token."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """Waiting sequences by adapter, served in turn so that one adapter's flood does not starve another."""

    def __init__(self, *, max_running: int, max_prefill_tokens: int) -> None:
        self.running: list[Sequence] = []
        self.num_waiting = 0
        self._max_running = max_running
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting: OrderedDict[str, deque[Sequence]] = OrderedDict()

    def add(self, sequence: Sequence) -> None:
        key = sequence.adapter.ref if sequence.adapter else ""
        self._waiting.setdefault(key, deque()).append(sequence)
        self.num_waiting += 1

    def drop_cancelled(self) -> list[Sequence]:
        """Takes out cancelled sequences; returns those that were running."""
        for key, queue in list(self._waiting.items()):
            kept = deque(s for s in queue if not s.cancelled)
            self.num_waiting -= len(queue) - len(kept)
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key]
        dropped = [s for s in self.running if s.cancelled]
        for sequence in dropped:
            self.running.remove(sequence)
        return dropped

    def admit(self, place: Callable[[Sequence], Admission]) -> None:
        """Moves waiting sequences to running, one adapter after the other, while `place` finds room."""
        turns = deque(self._waiting)
        while turns and len(self.running) < self._max_running:
            key = turns.popleft()
            queue = self._waiting[key]
            outcome = place(queue[0])
            if outcome is Admission.NO_ROOM:
                return
            if outcome is Admission.ADAPTER_NOT_READY:
                continue  # it is asked for again in the next step
            sequence = queue.popleft()
            self.num_waiting -= 1
            if outcome is Admission.ADMITTED:
                self.running.append(sequence)
            if queue:
                turns.append(key)
                self._waiting.move_to_end(key)  # who was served goes to the back
            else:
                del self._waiting[key]

    def plan(self) -> list[Work]:
        """One step: a token for each sequence that generates, and a bounded share of prompts, oldest first."""
        budget = self._max_prefill_tokens
        step = []
        for sequence in self.running:
            num_tokens = sequence.num_pending
            if sequence.num_outputs == sequence.params.max_new_tokens:
                continue  # its last token is under way
            if not sequence.num_outputs:
                num_tokens = min(num_tokens, budget)
                budget -= num_tokens
            if num_tokens:
                step.append(Work(sequence, num_tokens))
        return step

    def take_waiting(self) -> Iterator[Sequence]:
        """Empties the queue, yielding what was in it."""
        for queue in self._waiting.values():
            yield from queue
        self._waiting.clear()
        self.num_waiting = 0
