"""The time left, against runs whose end is known: recorded ones, and many that are made up."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from worker.eta import Eta, Pause, Plan

TRACES = sorted((Path(__file__).parent / "traces").glob("*.jsonl"))


class Event(NamedTuple):
    """The end of a step, or of a pause."""

    time_s: float
    step: int
    num_tokens: int
    pause: Pause | None = None


class Run(NamedTuple):
    plan: Plan
    events: list[Event]


def recorded(path: Path) -> Run:
    """A run of the embedded base on a CPU: rows of examples/yoda.csv in batches of like length."""
    head, *lines = (json.loads(line) for line in path.read_text().splitlines())
    events: list[Event] = []
    for line in lines:
        step = line.get("step") or events[-1].step
        num_tokens = line.get("num_tokens") or events[-1].num_tokens
        events.append(Event(line["time_s"], step, num_tokens, line.get("pause")))
    return Run(Plan(**head["plan"]), events)


def made_up(seed: int) -> Run:
    """A plausible run: noise, a slow first step, longest batches first, evaluations and checkpoints in between."""
    rng = random.Random(seed)
    steps_per_epoch = rng.randint(30, 400)
    epochs = rng.choice([1, 2, 3, 5])
    total_steps = steps_per_epoch * epochs
    mean_tokens = rng.choice([200, 1000, 8000])
    spread = rng.uniform(0.0, 0.7)
    per_step_s, per_token_s = rng.uniform(0.0, 0.1), rng.uniform(0.02, 2) / mean_tokens
    noise = rng.uniform(0.0, 0.2)
    evaluation_steps = rng.choice([None, math.ceil(total_steps / 10), math.ceil(total_steps / 4)])
    evaluation_tokens = round(mean_tokens * rng.uniform(0.5, 6))
    checkpoint_steps = rng.choice([None, math.ceil(total_steps / 20)])
    checkpoint_s = rng.uniform(0.1, 1) * per_token_s * mean_tokens

    lengths = _megabatches(rng, steps_per_epoch, mean_tokens, spread)
    events: list[Event] = []
    time_s, num_tokens = rng.uniform(0, 100), 0
    for step in range(1, total_steps + 1):
        if step > 1 and step % steps_per_epoch == 1:
            lengths = _megabatches(rng, steps_per_epoch, mean_tokens, spread, like=lengths)
        length = lengths[(step - 1) % steps_per_epoch]
        num_tokens += length
        scatter = rng.lognormvariate(0, noise)
        warm_up_s = 20 * per_token_s * mean_tokens if step == 1 else 0.0
        time_s += (per_step_s + per_token_s * length) * scatter + warm_up_s
        events.append(Event(time_s, step, num_tokens))
        if evaluation_steps and (step % evaluation_steps == 0 or step == total_steps):
            time_s += rng.uniform(0.4, 0.6) * evaluation_tokens * per_token_s
            events.append(Event(time_s, step, num_tokens, "evaluation"))
        if checkpoint_steps and (step % checkpoint_steps == 0 or step == total_steps):
            time_s += checkpoint_s * rng.uniform(0.7, 1.4)
            events.append(Event(time_s, step, num_tokens, "checkpoint"))
    plan = Plan(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        tokens_per_epoch=sum(lengths),
        evaluation_steps=evaluation_steps,
        evaluation_tokens=evaluation_tokens,
        checkpoint_steps=checkpoint_steps,
    )
    return Run(plan, events)


def _megabatches(
    rng: random.Random, num_steps: int, mean: int, spread: float, like: list[int] | None = None
) -> list[int]:
    """Tokens of each batch of an epoch as `group_by_length` has them: stretches that fall. `like`: the same batches."""
    lengths = list(
        like
        or (max(8, round(mean * rng.uniform(1 - spread, 1 + spread))) for _ in range(num_steps))
    )
    rng.shuffle(lengths)
    size = min(50, max(1, num_steps // 4))
    return [
        length
        for start in range(0, num_steps, size)
        for length in sorted(lengths[start : start + size], reverse=True)
    ]


def replay(run: Run) -> Iterator[tuple[Event, Eta]]:
    eta = Eta(run.plan)
    for event in run.events:
        if event.pause:
            eta.add_pause(event.pause, event.time_s)
        else:
            eta.add_step(event.time_s, event.step, event.num_tokens)
        yield event, eta


def errors(run: Run) -> dict[float, float]:
    """Share of the run that is done -> relative error of the time left, from a tenth of the run to four fifths."""
    found = {}
    end_s = run.events[-1].time_s
    for event, eta in replay(run):
        done = event.step / run.plan.total_steps
        if 0.1 < done <= 0.8:
            assert eta.seconds_left is not None
            found[done] = eta.seconds_left / (end_s - event.time_s) - 1
    return found


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_recorded_runs_within_20_percent_after_a_tenth(path: Path) -> None:
    worst = max(errors(recorded(path)).items(), key=lambda item: abs(item[1]))
    assert abs(worst[1]) < 0.2, worst


@pytest.mark.parametrize("seed", range(150))
def test_plausible_runs_within_20_percent_after_a_tenth(seed: int) -> None:
    run = made_up(seed)
    worst = max(errors(run).items(), key=lambda item: abs(item[1]))
    assert abs(worst[1]) < 0.2, (worst, run.plan)


def test_nothing_is_said_before_the_second_step() -> None:
    eta = Eta(Plan(total_steps=10))
    assert (eta.seconds_left, eta.tokens_per_second) == (None, None)
    eta.add_pause("evaluation", 3.0)
    eta.add_step(50.0, 1, 100)
    assert (eta.seconds_left, eta.tokens_per_second) == (None, None)
    eta.add_step(52.0, 2, 200)
    assert (eta.seconds_left, eta.tokens_per_second) == (16.0, 50.0)


def test_pauses_are_not_part_of_the_speed() -> None:
    eta = Eta(Plan(total_steps=10, evaluation_steps=2, checkpoint_steps=5))
    time_s = 0.0
    for step in range(1, 11):
        time_s += 1
        eta.add_step(time_s, step, 100 * step)
        if step % 2 == 0:
            time_s += 30
            eta.add_pause("evaluation", time_s)
        if step % 5 == 0:
            time_s += 4
            eta.add_pause("checkpoint", time_s)
        if step > 1:
            assert eta.tokens_per_second == pytest.approx(100)
        if step == 5:
            assert eta.seconds_left == pytest.approx(5 + 3 * 30 + 4)
    assert eta.seconds_left == 0


def test_an_evaluation_after_a_last_step_that_the_interval_does_not_divide() -> None:
    eta = Eta(Plan(total_steps=5, evaluation_steps=3))
    for step in range(1, 4):
        eta.add_step(float(step), step, step)
    eta.add_pause("evaluation", 13.0)
    assert eta.seconds_left == pytest.approx(2 + 10)
    eta.add_step(14.0, 4, 4)
    eta.add_step(15.0, 5, 5)
    assert eta.seconds_left == pytest.approx(10)
    eta.add_pause("evaluation", 25.0)
    assert eta.seconds_left == 0


def test_a_run_that_goes_on_from_a_checkpoint() -> None:
    plan = Plan(total_steps=100, steps_per_epoch=50, tokens_per_epoch=5000, evaluation_steps=10)
    eta = Eta(plan)
    for step in range(61, 66):
        eta.add_step(2.0 * step, step, 100 * step)
    assert eta.seconds_left == pytest.approx(70)
    assert eta.tokens_per_second == pytest.approx(50)
    eta.add_pause("evaluation", 2.0 * 65 + 7)
    assert eta.seconds_left == pytest.approx(70 + 4 * 7)


def test_a_machine_that_becomes_slower() -> None:
    eta = Eta(Plan(total_steps=10_000))
    time_s = 0.0
    for step in range(1, 5001):
        time_s += 1 if step <= 4000 else 3
        eta.add_step(time_s, step, 100 * step)
    assert eta.seconds_left == pytest.approx(15_000, rel=0.02)


def test_tokens_that_nobody_counted() -> None:
    eta = Eta(Plan(total_steps=4, steps_per_epoch=4, tokens_per_epoch=400, evaluation_tokens=10))
    for step in (1, 2):
        eta.add_step(float(step), step, 0)
    assert (eta.seconds_left, eta.tokens_per_second) == (2.0, 0.0)
