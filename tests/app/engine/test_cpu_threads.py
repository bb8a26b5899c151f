"""Threads given up while other processes need the processors, and tried again."""

from itertools import pairwise

import pytest

from app.engine.cpu_threads import EngineThreads


class Machine:
    """Its clock, the number of threads that was asked for, and turns of 0.3 s."""

    def __init__(self, most: int) -> None:
        self.now_s = 100.0
        self.asked: list[int] = []
        self.threads = EngineThreads(most, apply=self.asked.append, clock=lambda: self.now_s)

    def turn(self, computed: float, number: int = 1, wall_s: float = 0.3) -> int:
        """`computed`: share of its time in which the engine's thread computes."""
        for _ in range(number):
            self.now_s += wall_s
            self.threads.note(wall_s, computed * wall_s)
        return self.threads.number


def test_all_threads_while_nothing_disturbs() -> None:
    machine = Machine(4)
    machine.turn(0.9, 100)
    assert machine.asked == [4]


def test_one_thread_less_for_each_window_that_is_held_up() -> None:
    machine = Machine(3)
    assert machine.turn(0.5) == 2
    assert machine.turn(0.5) == 1
    assert machine.turn(0.5, 10) == 1, "one is the least"
    assert machine.asked == [3, 2, 1]


def test_a_short_disturbance_is_none() -> None:
    machine = Machine(2)
    machine.turn(0.1, wall_s=0.02)
    assert machine.turn(1.0, wall_s=0.3) == 2


def test_a_thread_comes_back_once_nothing_disturbs() -> None:
    machine = Machine(2)
    machine.turn(0.5)
    assert machine.turn(1.0, 10, wall_s=0.4) == 1
    assert machine.turn(1.0, 4, wall_s=0.4) == 2
    assert machine.turn(1.0, 100) == 2


def test_trials_that_fail_become_rare_until_one_succeeds() -> None:
    machine = Machine(2)
    trials = []
    for _ in range(1000):
        before = machine.threads.number
        number = machine.turn(0.5 if before == 2 else 1.0)
        if number == 2 and before == 1:
            trials.append(machine.now_s)
    pauses = [after - before for before, after in pairwise(trials)]
    assert pauses[:4] == pytest.approx([10, 20, 40, 60], abs=1)
    assert pauses[4:] == pytest.approx([60] * len(pauses[4:]), abs=1)
    machine.turn(1.0, 300)
    assert machine.threads.number == 2
    assert machine.turn(0.5) == 1
    assert machine.turn(1.0, 18) == 2, "patience is what it was at first"


def test_a_disturbed_thread_alone_is_not_told_from_a_calm_one() -> None:
    """With one thread nothing waits for another; more are tried all the same."""
    machine = Machine(2)
    machine.turn(0.5)
    assert 2 in {machine.turn(0.5) for _ in range(20)}
