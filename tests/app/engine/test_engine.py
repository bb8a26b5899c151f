"""The engine under load: hot swap, isolation, fairness, cancel, bounds, sampling in a mix."""

import queue
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine.engine import Engine
from app.engine.sequence import FinishReason, Sequence, Update
from core.adapter_version import WEIGHTS_FILE, AdapterVersion
from core.errors import InvalidError, ServiceError, UnavailableError
from tests.app.harness import (
    as_version,
    load_nf4,
    make_adapter,
    make_request,
    peft_greedy,
    start_engine,
    wait_until,
)
from tests.app.tiny import Tiny

PROMPT = [100, 200, 300, 400]


@pytest.fixture
def engine(tiny: Tiny) -> Iterator[Engine]:
    engine = start_engine(load_nf4(tiny.folder))
    yield engine
    engine.stop()


def copy_adapter(source: AdapterVersion, folder: Path, name: str) -> AdapterVersion:
    shutil.copytree(source.path, folder / name)
    return as_version(folder / name, name)


@contextmanager
def held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, no further step is computed."""
    go, run = threading.Event(), engine._forward.run

    def run_later(*args: object) -> torch.Tensor:
        assert go.wait(60)
        return run(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(engine._forward, "run", run_later)
        try:
            yield
        finally:
            go.set()


def slow_down(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred steps take a second now, whatever the processor."""
    run = engine._forward.run

    def run_slowly(*args: object) -> torch.Tensor:
        time.sleep(0.01)
        return run(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._forward, "run", run_slowly)


def test_hot_swap_leaves_running_tokens_unchanged(
    engine: Engine, tiny: Tiny, tmp_path: Path
) -> None:
    """20 loads, with evictions, while others generate: their tokens are those of a quiet engine."""
    watched = tiny.adapters[1]
    expected = peft_greedy(tiny.reference, PROMPT, watched, 200)
    base_expected = peft_greedy(tiny.reference, PROMPT, None, 200)
    running = make_request(PROMPT, watched, max_new_tokens=200)
    base = make_request(PROMPT, None, max_new_tokens=200)
    engine.submit(running.sequence, base.sequence)
    for i in range(20):
        swapped = make_adapter(tmp_path, tiny.reference, f"s{i}", seed=i, r=16, scale=1.0)
        request = make_request([5, 6, 7], swapped, max_new_tokens=2)
        engine.submit(request.sequence)
        assert request.result().finish_reason is FinishReason.LENGTH
    assert engine.stats().num_adapter_evictions > 10, "the bank never had to evict"
    assert running.result().token_ids == expected
    assert base.result().token_ids == base_expected


def test_an_adapter_evicted_and_loaded_again_answers_as_before(
    engine: Engine, tiny: Tiny, tmp_path: Path
) -> None:
    first = tiny.adapters[2]
    expected = peft_greedy(tiny.reference, PROMPT, first, 8)
    for round_number in range(2):
        request = make_request(PROMPT, first, max_new_tokens=8)
        engine.submit(request.sequence)
        assert request.result().token_ids == expected
        for i in range(5):
            name = f"evict{round_number}-{i}"
            other = make_adapter(tmp_path, tiny.reference, name, seed=i, r=16, scale=2.0)
            filler = make_request(PROMPT, other, max_new_tokens=1)
            engine.submit(filler.sequence)
            filler.result()
        assert first.ref not in engine.resident_adapters
    stats = engine.stats()
    assert stats.num_adapter_host_hits == 1, "the second round read no file"
    assert stats.num_adapter_loads == 12
    assert stats.num_adapter_host_bytes > 0
    assert stats.adapter_load_seconds > 0


def test_more_adapters_than_room_all_get_their_turn(tiny: Tiny, tmp_path: Path) -> None:
    engine = start_engine(load_nf4(tiny.folder), lora_width=12)
    try:
        adapters = [copy_adapter(tiny.adapters[i % 3], tmp_path, f"n{i}") for i in range(9)]
        requests = [make_request(PROMPT, adapters[i % 9], max_new_tokens=6) for i in range(27)]
        engine.submit(*(r.sequence for r in requests))
        expected = [peft_greedy(tiny.reference, PROMPT, tiny.adapters[i], 6) for i in range(3)]
        for i, request in enumerate(requests):
            assert request.result().token_ids == expected[i % 9 % 3]
    finally:
        engine.stop()


def test_an_adapter_that_finds_no_room_in_time_is_refused_as_busy(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(load_nf4(tiny.folder), lora_width=8, adapter_wait_s=0.2)
    slow_down(engine, monkeypatch)
    try:
        # Rank 8 holds every column for as long as it runs.
        holder = make_request(PROMPT, tiny.adapters[2], max_new_tokens=400, streaming=True)
        engine.submit(holder.sequence)
        holder.updates.get(timeout=60)
        late = make_request(PROMPT, tiny.adapters[0], max_new_tokens=1)
        engine.submit(late.sequence)
        error = late.result().error
        assert isinstance(error, UnavailableError)
        assert error.code == "adapters_busy"
        assert holder.sequence in engine._scheduler.running
        engine.cancel(holder.sequence)
        again = make_request(PROMPT, tiny.adapters[0], max_new_tokens=1)
        engine.submit(again.sequence)
        assert again.result().error is None
    finally:
        engine.stop()


@pytest.mark.parametrize(
    "fault", ["nan", "huge", "missing", "garbage", "shape", "rank 0", "scalar"]
)
def test_a_bad_adapter_hurts_only_who_asked_for_it(
    engine: Engine, tiny: Tiny, tmp_path: Path, fault: str
) -> None:
    bad = copy_adapter(tiny.adapters[0], tmp_path, "bad")
    weights = bad.path / WEIGHTS_FILE
    if fault == "garbage":
        weights.write_bytes(b"not safetensors")
    elif fault == "missing":
        weights.unlink()
    else:
        tensors = load_file(weights)
        key = next(k for k in tensors if "lora_B" in k)
        if fault == "shape":
            tensors[key] = tensors[key][:-1].contiguous()
        elif fault == "rank 0":
            tensors[key] = tensors[key][:, :0].contiguous()
            key = key.replace("lora_B", "lora_A")
            tensors[key] = tensors[key][:0].contiguous()
        elif fault == "scalar":
            tensors[key.replace("lora_B", "lora_A")] = torch.tensor(1.0)
        else:
            # Huge but finite: it overflows only in the forward pass, where a mask would spread it.
            for name in tensors:
                tensors[name].fill_(float("nan") if fault == "nan" else 1e30)
        save_file(tensors, weights)
    columns = engine.stats().num_free_lora_columns
    neighbour = make_request(PROMPT, tiny.adapters[1], max_new_tokens=30)
    victims = [make_request(PROMPT, bad), make_request([7, *PROMPT], bad)]
    engine.submit(neighbour.sequence, *(v.sequence for v in victims))
    for victim in victims:
        error = victim.result().error
        assert isinstance(error, InvalidError)
        assert error.code == "adapter_unusable"
    assert neighbour.result().token_ids == peft_greedy(tiny.reference, PROMPT, tiny.adapters[1], 30)
    assert engine.resident_adapters == [tiny.adapters[1].ref]
    assert [ref for ref, _ in engine._adapters._tier] == engine.resident_adapters
    assert engine.stats().num_free_lora_columns == columns - 4  # its rank


@pytest.mark.parametrize("place", ["read_lora", "load"])
def test_a_load_that_failed_once_leaves_nothing_behind(
    engine: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Memory ran out, say: neighbours run on, room is given back, and the next request loads it."""

    def fail(*_: object) -> None:
        raise MemoryError

    neighbour = make_request(PROMPT, None, max_new_tokens=60)
    engine.submit(neighbour.sequence)
    columns = engine.stats().num_free_lora_columns
    with monkeypatch.context() as patch:
        if place == "read_lora":
            patch.setattr("app.engine.adapter_loader.read_lora", fail)
        else:
            site = list(engine._bank.sites.values())[1]
            patch.setattr(site, "lora_b", site.lora_b[:, :1])
        victim = make_request(PROMPT, tiny.adapters[0])
        engine.submit(victim.sequence)
        assert isinstance(victim.result().error, UnavailableError)
    assert engine.stats().num_free_lora_columns == columns
    again = make_request(PROMPT, tiny.adapters[0], max_new_tokens=20)
    engine.submit(again.sequence)
    assert again.result().token_ids == peft_greedy(tiny.reference, PROMPT, tiny.adapters[0], 20)
    assert neighbour.result().token_ids == peft_greedy(tiny.reference, PROMPT, None, 60)


def test_few_adapters_are_read_ahead_of_room(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(load_nf4(tiny.folder), lora_width=8)
    slow_down(engine, monkeypatch)
    try:
        # Rank 8 holds every column for as long as it runs.
        holder = make_request(PROMPT, tiny.adapters[2], max_new_tokens=400, streaming=True)
        engine.submit(holder.sequence)
        holder.updates.get(timeout=60)
        others = [copy_adapter(tiny.adapters[0], tmp_path, f"n{i}") for i in range(20)]
        requests = [make_request(PROMPT, other, max_new_tokens=2) for other in others]
        engine.submit(*(r.sequence for r in requests))
        errands = engine._adapters._loader._reads
        wait_until(lambda: len(errands) == 8 and all(e.future.done() for e in errands.values()))
        steps = engine.stats().num_steps
        wait_until(lambda: engine.stats().num_steps > steps + 2)
        assert len(errands) == 8
        engine.cancel(holder.sequence)
        expected = peft_greedy(tiny.reference, PROMPT, tiny.adapters[0], 2)
        for request in requests:
            assert request.result().token_ids == expected
    finally:
        engine.stop()


def test_a_flood_does_not_starve_another_adapter(tiny: Tiny) -> None:
    engine = start_engine(load_nf4(tiny.folder), max_running=4)
    try:
        flood = [make_request(PROMPT, tiny.adapters[0], max_new_tokens=8) for _ in range(100)]
        engine.submit(*(r.sequence for r in flood))
        late = make_request(PROMPT, tiny.adapters[1], max_new_tokens=8)
        tell = late.sequence.sink
        waiting: list[int] = []

        def note(update: Update) -> None:
            waiting.append(engine.stats().num_waiting)
            tell(update)

        late.sequence.sink = note
        engine.submit(late.sequence)
        late.result()
        assert waiting[-1] > 50, "it waited behind the flood"
        for request in flood:
            assert request.result().finish_reason is FinishReason.LENGTH
    finally:
        engine.stop()


def test_cancel_frees_the_place_within_a_step(
    engine: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = engine.stats().num_free_cache_tokens
    request = make_request(PROMPT, tiny.adapters[0], max_new_tokens=400, streaming=True)
    engine.submit(request.sequence)
    request.updates.get(timeout=60)
    with held(engine, monkeypatch):
        steps = engine.stats().num_steps
        engine.cancel(request.sequence)
    wait_until(lambda: engine.stats().num_running == 0)
    assert engine.stats().num_steps <= steps + 3
    assert engine.stats().num_free_cache_tokens == free
    assert engine.stats().num_cancelled == 1


def test_cancel_while_waiting(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start_engine(load_nf4(tiny.folder), max_running=1)
    try:
        running = make_request(PROMPT, None, max_new_tokens=60)
        waiting = make_request(PROMPT, None, max_new_tokens=60)
        with held(engine, monkeypatch):
            engine.submit(running.sequence, waiting.sequence)
            engine.cancel(waiting.sequence)
        running.result()
        wait_until(lambda: engine.stats().num_waiting == 0)
        assert waiting.updates.empty()
    finally:
        engine.stop()


def test_the_queue_is_bounded_and_takes_all_or_none(tiny: Tiny) -> None:
    engine = start_engine(load_nf4(tiny.folder), max_waiting=4)
    try:
        requests = [make_request(PROMPT) for _ in range(5)]
        with pytest.raises(UnavailableError, match="at most 4") as raised:
            engine.submit(*(r.sequence for r in requests))
        assert raised.value.code == "queue_full"
        assert engine.stats().num_waiting == 0
        engine.submit(*(r.sequence for r in requests[:4]))
        for request in requests[:4]:
            request.result()
    finally:
        engine.stop()


@pytest.mark.parametrize("prompt", [[], [-1], [10**9]])
def test_impossible_token_ids_are_refused_before_they_reach_the_model(
    engine: Engine, prompt: list[int]
) -> None:
    with pytest.raises(InvalidError, match="token ids below"):
        engine.submit(make_request(prompt).sequence)


def test_more_than_the_context_is_refused_before_admission(engine: Engine) -> None:
    with pytest.raises(InvalidError, match="512 tokens that fit") as raised:
        engine.submit(make_request([5] * 500, max_new_tokens=13).sequence)
    assert raised.value.code == "text_too_long"
    fits = make_request([5] * 500, max_new_tokens=12)
    engine.submit(fits.sequence)
    assert len(fits.result().token_ids) == 12


def test_sequences_wait_for_room_in_the_cache_and_all_finish(tiny: Tiny) -> None:
    engine = start_engine(load_nf4(tiny.folder), kv_cache_tokens=520)
    try:
        requests = [make_request([5 + i] * 100, max_new_tokens=40) for i in range(12)]
        engine.submit(*(r.sequence for r in requests))
        for i, request in enumerate(requests):
            expected = peft_greedy(tiny.reference, [5 + i] * 100, None, 40)
            assert request.result().token_ids == expected
        wait_until(lambda: engine.stats().num_free_cache_tokens == 512)
    finally:
        engine.stop()


@pytest.mark.parametrize("is_resident", [True, False])
def test_a_request_that_waits_for_the_cache_is_one_hit_at_most(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, is_resident: bool
) -> None:
    engine = start_engine(load_nf4(tiny.folder), kv_cache_tokens=520)
    slow_down(engine, monkeypatch)
    try:
        if is_resident:
            warm = make_request(PROMPT, tiny.adapters[0], max_new_tokens=1)
            engine.submit(warm.sequence)
            warm.result()
        holder = make_request(PROMPT, None, max_new_tokens=500, streaming=True)
        engine.submit(holder.sequence)
        holder.updates.get(timeout=60)
        late = make_request(PROMPT, tiny.adapters[0])
        engine.submit(late.sequence)
        wait_until(lambda: late.sequence.slot)
        steps = engine.stats().num_steps
        wait_until(lambda: engine.stats().num_steps > steps + 3)
        assert engine.stats().num_running == 1, "there was room in the cache after all"
        engine.cancel(holder.sequence)
        late.result()
        assert engine.stats().num_adapter_hits == is_resident
        assert engine.stats().num_adapter_loads == 1
    finally:
        engine.stop()


def test_greedy_and_sampled_mix_in_one_batch(engine: Engine, tiny: Tiny) -> None:
    expected = peft_greedy(tiny.reference, PROMPT, tiny.adapters[0], 12)
    greedy = [make_request(PROMPT, tiny.adapters[0]) for _ in range(4)]
    seeded = [make_request(PROMPT, tiny.adapters[0], temperature=1.5, seed=7) for _ in range(2)]
    free = [make_request(PROMPT, tiny.adapters[0], temperature=1.5) for _ in range(6)]
    engine.submit(*(r.sequence for r in [*greedy, *seeded, *free]))
    assert [r.result().token_ids for r in greedy] == [expected] * 4
    first, second = (r.result().token_ids for r in seeded)
    assert first == second != expected
    assert len({tuple(r.result().token_ids) for r in free}) > 1
    alone = make_request(PROMPT, tiny.adapters[0], temperature=1.5, seed=7)
    engine.submit(alone.sequence)
    assert alone.result().token_ids == first, "a seed's tokens depend on who shares the batch"


def test_a_stop_token_ends_a_sequence_and_is_not_part_of_it(engine: Engine, tiny: Tiny) -> None:
    expected = peft_greedy(tiny.reference, PROMPT, tiny.adapters[3], 12)
    stop = next(t for t in expected[1:] if t not in expected[:1])
    request = make_request(PROMPT, tiny.adapters[3], stop=[stop])
    engine.submit(request.sequence)
    update = request.result()
    assert update.finish_reason is FinishReason.STOP
    assert update.token_ids == expected[: expected.index(stop)]


def test_streaming_gives_each_token_and_the_whole_at_the_end(engine: Engine, tiny: Tiny) -> None:
    request = make_request(PROMPT, tiny.adapters[0], streaming=True)
    engine.submit(request.sequence)
    parts: list[int] = []
    while True:
        update = request.updates.get(timeout=60)
        if update.finish_reason is not None:
            break
        parts += update.token_ids
    assert update.token_ids[: len(parts)] == parts
    assert len(update.token_ids) == 12


def test_a_listener_whose_event_loop_is_closed_harms_nobody(engine: Engine, tiny: Tiny) -> None:
    def closed(_: Update) -> None:
        raise RuntimeError("Event loop is closed")

    request = make_request(PROMPT, None, streaming=True)
    broken = Sequence(PROMPT, request.sequence.params, None, closed, streaming=True)
    engine.submit(broken, request.sequence)
    assert request.result().token_ids == peft_greedy(tiny.reference, PROMPT, None, 12)
    wait_until(lambda: engine.stats().num_running == 0)
    assert engine.fault is None


def test_a_failed_step_fails_its_sequences_and_the_next_are_served(
    engine: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = engine._forward.run
    failures = iter([torch.OutOfMemoryError("no memory")])

    def fail_once(*args: object) -> torch.Tensor:
        for error in failures:
            raise error
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._forward, "run", fail_once)
    free = engine.stats().num_free_cache_tokens
    request = make_request(PROMPT)
    engine.submit(request.sequence)
    error = request.result().error
    assert isinstance(error, UnavailableError)
    assert error.code == "step_failed"
    again = make_request(PROMPT)
    engine.submit(again.sequence)
    assert again.result().token_ids == peft_greedy(tiny.reference, PROMPT, None, 12)
    assert engine.stats().num_free_cache_tokens == free
    assert engine.fault is None


@pytest.mark.parametrize("place", ["step", "load"])
def test_a_device_that_fails_for_good_ends_the_engine(
    engine: Engine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As after a CUDA error: every call repeats it until the process ends."""

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel ...")

    assert engine.fault is None
    owner, name = (engine._forward, "run") if place == "step" else (engine._bank, "load")
    monkeypatch.setattr(owner, name, fail)
    monkeypatch.setattr(engine._model, "check_device", fail)
    request = make_request(PROMPT, None if place == "step" else tiny.adapters[0])
    engine.submit(request.sequence)
    error = request.result().error
    assert isinstance(error, UnavailableError)
    assert error.code == ("step_failed" if place == "step" else "not_ready")
    wait_until(lambda: engine.fault)
    assert engine.fault is not None
    assert engine.fault.endswith("CUDA error: device-side assert triggered")
    with pytest.raises(UnavailableError, match="device-side assert") as raised:
        engine.submit(make_request(PROMPT).sequence)
    assert raised.value.code == "not_ready"
    engine.stop(grace_s=60)


def test_stop_lets_running_finish_and_refuses_new_ones(tiny: Tiny) -> None:
    engine = start_engine(load_nf4(tiny.folder))
    request = make_request(PROMPT, None, max_new_tokens=30)
    engine.submit(request.sequence)
    engine.stop(grace_s=20)
    assert request.result().finish_reason is FinishReason.LENGTH
    with pytest.raises(UnavailableError) as raised:
        engine.submit(make_request(PROMPT).sequence)
    assert raised.value.code == "stopping"
    assert engine.fault == "the engine's thread has ended"


def test_stop_without_grace_tells_everyone(tiny: Tiny) -> None:
    engine = start_engine(load_nf4(tiny.folder), max_running=1)
    requests = [make_request(PROMPT, None, max_new_tokens=500) for _ in range(3)]
    engine.submit(*(r.sequence for r in requests))
    engine.stop()
    for request in requests:
        error = request.result().error
        assert isinstance(error, ServiceError)
        assert error.code == "stopping"


def test_submitting_from_many_threads(engine: Engine, tiny: Tiny) -> None:
    expected = [peft_greedy(tiny.reference, PROMPT, a, 12) for a in tiny.adapters]
    failures: queue.Queue[str] = queue.Queue()

    def ask(number: int) -> None:
        for _ in range(5):
            request = make_request(PROMPT, tiny.adapters[number % 5])
            engine.submit(request.sequence)
            if request.result().token_ids != expected[number % 5]:
                failures.put(f"thread {number} got another's tokens")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures.empty()
