"""Admission, fairness and the share of prompt tokens, without a model."""

from pathlib import Path

import pytest

from app.engine.scheduler import Admission, Scheduler
from app.engine.sequence import FinishReason, SamplingParams, Sequence
from tests.app.harness import as_version


def make(num_prompt: int = 3, adapter: str | None = None, max_new: int = 4) -> Sequence:
    version = as_version(Path("nowhere"), adapter) if adapter else None
    return Sequence(
        list(range(num_prompt)), SamplingParams(max_new, frozenset({99})), version, lambda _: None
    )


def make_scheduler(max_running: int = 8, max_prefill_tokens: int = 10) -> Scheduler:
    return Scheduler(max_running=max_running, max_prefill_tokens=max_prefill_tokens)


def admit_all(_: Sequence) -> Admission:
    return Admission.ADMITTED


def test_adapters_are_served_in_turn() -> None:
    scheduler = make_scheduler(max_running=4)
    flood = [make(adapter="flood") for _ in range(10)]
    for sequence in flood:
        scheduler.add(sequence)
    other, base = make(adapter="other"), make()
    scheduler.add(other)
    scheduler.add(base)
    scheduler.admit(admit_all)
    assert scheduler.running == [flood[0], other, base, flood[1]]
    assert scheduler.num_waiting == 8


def test_turns_go_on_across_steps() -> None:
    scheduler = make_scheduler(max_running=1)
    first, second = [[make(adapter=name) for _ in range(3)] for name in ("a", "b")]
    for sequence in [*first, *second]:
        scheduler.add(sequence)
    served = []
    for _ in range(6):
        scheduler.admit(admit_all)
        served.append(scheduler.running.pop())
    assert served == [s for pair in zip(first, second, strict=True) for s in pair]


def test_no_room_blocks_everybody_so_that_a_long_one_is_not_passed_for_ever() -> None:
    scheduler = make_scheduler()
    long, short = make(100, adapter="a"), make(1, adapter="b")
    scheduler.add(long)
    scheduler.add(short)
    scheduler.admit(lambda s: Admission.NO_ROOM if s is long else Admission.ADMITTED)
    assert scheduler.running == []
    assert scheduler.num_waiting == 2


def test_an_adapter_that_is_not_ready_blocks_only_its_own() -> None:
    scheduler = make_scheduler()
    cold, warm = make(adapter="cold"), make(adapter="warm")
    scheduler.add(cold)
    scheduler.add(warm)
    scheduler.admit(lambda s: Admission.ADAPTER_NOT_READY if s is cold else Admission.ADMITTED)
    assert scheduler.running == [warm]
    assert scheduler.num_waiting == 1


def test_an_adapter_that_is_not_ready_is_asked_for_once_a_step() -> None:
    scheduler = make_scheduler()
    cold = [make(adapter=f"cold{i}") for i in range(2)]
    warm = [make(adapter="warm") for _ in range(3)]
    for sequence in (cold[0], *warm, cold[1]):
        scheduler.add(sequence)
    asked = []

    def place(sequence: Sequence) -> Admission:
        asked.append(sequence)
        return Admission.ADAPTER_NOT_READY if sequence in cold else Admission.ADMITTED

    scheduler.admit(place)
    assert asked == [cold[0], warm[0], cold[1], *warm[1:]]
    assert scheduler.running == warm
    scheduler.admit(admit_all)
    assert scheduler.running == [*warm, *cold]


def test_failed_sequences_leave_the_queue() -> None:
    scheduler = make_scheduler()
    for _ in range(3):
        scheduler.add(make(adapter="broken"))
    scheduler.admit(lambda _: Admission.FAILED)
    assert scheduler.running == []
    assert scheduler.num_waiting == 0


def test_prompts_are_read_in_chunks_oldest_first_while_others_generate() -> None:
    scheduler = make_scheduler(max_prefill_tokens=10)
    generating, first, second = make(2), make(14), make(7)
    for sequence in (generating, first, second):
        scheduler.add(sequence)
    scheduler.admit(admit_all)
    generating.num_computed = 2
    generating.append(5)
    plan = [(w.sequence, w.num_tokens, w.yields_token) for w in scheduler.plan()]
    assert plan == [(generating, 1, True), (first, 10, False)]
    first.num_computed = 10
    plan = [(w.sequence, w.num_tokens, w.yields_token) for w in scheduler.plan()]
    assert plan == [(generating, 1, True), (first, 4, True), (second, 6, False)]


def test_cancelled_sequences_are_dropped_wherever_they_are() -> None:
    scheduler = make_scheduler(max_running=1)
    running, waiting, kept = make(), make(adapter="a"), make(adapter="a")
    for sequence in (running, waiting, kept):
        scheduler.add(sequence)
    scheduler.admit(admit_all)
    running.cancelled = waiting.cancelled = True
    assert scheduler.drop_cancelled() == [running]
    assert scheduler.num_waiting == 1
    scheduler.admit(admit_all)
    assert scheduler.running == [kept]


def test_take_waiting_empties_the_queue() -> None:
    scheduler = make_scheduler()
    sequences = [make(adapter=name) for name in "aab"]
    for sequence in sequences:
        scheduler.add(sequence)
    assert list(scheduler.take_waiting()) == sequences
    assert scheduler.num_waiting == 0


@pytest.mark.parametrize(
    ("token", "reason", "output"),
    [(99, FinishReason.STOP, []), (7, None, [7])],
)
def test_append(token: int, reason: FinishReason | None, output: list[int]) -> None:
    sequence = make()
    assert sequence.append(token) is reason
    assert sequence.output_ids == output


def test_append_ends_at_max_new_tokens() -> None:
    sequence = make(max_new=2)
    assert sequence.append(1) is None
    assert sequence.append(2) is FinishReason.LENGTH
