"""Runs planned steps, one ahead of the tokens where the device works by itself."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from app.engine.sampling import Likeliest, Sampler, choose_likeliest, is_drawn
from app.engine.scheduler import Work
from app.engine.sequence import Sequence
from app.engine.stats import EngineStats
from app.model.forward import Forward
from app.model.step import Span, Step


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was asked for, whose tokens may not be here yet."""

    sequences: list[Sequence]  # those that get a token
    likeliest: Likeliest
    logits: Tensor | None  # where some sequence wants its token drawn


class Runner:
    """Owned by the engine's thread."""

    def __init__(self, forward: Forward, stats: EngineStats) -> None:
        self._forward = forward
        self._stats = stats
        self._sampler = Sampler()
        self._flights: deque[_Flight] = deque()

    def run(self, work: list[Work]) -> Iterator[tuple[Sequence, int]]:
        """Asks for a step; yields the token ids that are here by now, -1 where the logits were not finite.

        Sequences that ended while their step was under way get none.
        """
        if work:
            self._launch(work)
        # A GPU gets its next step before the tokens of the last one are looked at.
        is_ahead = work and self._forward.is_asynchronous and self._flights[-1].logits is None
        while len(self._flights) > bool(is_ahead):
            yield from self._land(self._flights.popleft())

    def forget(self, sequence: Sequence) -> None:
        """The sequence is over."""
        self._sampler.forget(id(sequence))

    def clear(self) -> None:
        """Drops what is under way."""
        self._flights.clear()

    def _launch(self, work: list[Work]) -> None:
        # Neighbours then read the same columns of the bank.
        work.sort(key=lambda w: self._forward.first_column(w.sequence.slot))
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

    def _land(self, flight: _Flight) -> Iterator[tuple[Sequence, int]]:
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
                yield sequence, token_id


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
