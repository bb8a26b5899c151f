"""How fast a run is, and how long the rest of it will take. Knows no clock: times are handed in."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

Pause = Literal["evaluation", "checkpoint"]

_NUM_SPEED_STEPS = 20
_FORGETTING = 1 - 1 / 200  # a step's weight against the step after it: a machine's speed changes
# How much a fit of n steps leans on "time is proportional to tokens": steps that scatter by a fifth of their mean, and
# a slope that is within half of the proportional one; (0.2 / 0.5)^2.
_PRIOR = 0.16
# Of a training step with frozen weights: forward, without backward.
_EVALUATION_COST = 0.5


@dataclass(frozen=True)
class Plan:
    """What is known before the first step. None: not at all, or of an interval, never.

    `tokens_per_epoch` counts as the marks do; `evaluation_steps` and `checkpoint_steps` are the intervals between
    pauses, and each has another at the end of the run; `evaluation_tokens` are read by one evaluation.
    """

    total_steps: int
    steps_per_epoch: float | None = None
    tokens_per_epoch: int | None = None
    evaluation_steps: int | None = None
    evaluation_tokens: int | None = None
    checkpoint_steps: int | None = None


class _Mark(NamedTuple):
    """The end of a step: tokens seen so far, and the time that was not a pause."""

    time_s: float
    step: int
    num_tokens: int


class Eta:
    """A model of a run's time: a + b * tokens seconds a step, plus the pauses still to come.

    A pause is as long as those before it; an evaluation before the first one, as its tokens let expect.

    Tokens matter because batches of like length come longest first: the mean of the first steps is not that of all.
    The first step also warms up; it says nothing about the others.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._marks: deque[_Mark] = deque(maxlen=_NUM_SPEED_STEPS + 1)
        self._newest_s: float | None = None
        self._paused_s = 0.0
        self._pause_s: dict[Pause, float] = {}
        self._paused_at: dict[Pause, int] = {}
        self._fit = _StepFit()

    def add_step(self, time_s: float, step: int, num_tokens: int) -> None:
        """`step` steps are done at `time_s`; `num_tokens` were seen so far."""
        mark = _Mark(time_s - self._paused_s, step, num_tokens)
        if self._marks:
            before = self._marks[-1]
            self._fit.add(mark.num_tokens - before.num_tokens, mark.time_s - before.time_s)
        self._marks.append(mark)
        self._newest_s = time_s

    def add_pause(self, kind: Pause, time_s: float) -> None:
        """A pause, which began with the end of a step or of another pause, ends at `time_s`."""
        if self._newest_s is None:
            return
        length_s = time_s - self._newest_s
        self._newest_s = time_s
        self._paused_s += length_s
        self._paused_at[kind] = self._marks[-1].step
        # Halfway to the newest one, since the first also warms up.
        self._pause_s[kind] = (self._pause_s.get(kind, length_s) + length_s) / 2

    @property
    def tokens_per_second(self) -> float | None:
        """Over the newest steps, pauses left out; None before the second step."""
        if len(self._marks) < 2:
            return None
        first, last = self._marks[0], self._marks[-1]
        return (last.num_tokens - first.num_tokens) / max(last.time_s - first.time_s, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """From the newest mark to the end of the run; None before the second step."""
        if len(self._marks) < 2:
            return None
        step = self._marks[-1].step
        steps_left = max(self._plan.total_steps - step, 0)
        left_s = self._fit.seconds(steps_left, self._tokens_left(step, steps_left))
        for kind, length_s in self._expected_pauses_s().items():
            left_s += self._num_pauses_left(kind, step) * length_s
        return left_s

    def _expected_pauses_s(self) -> dict[Pause, float]:
        if self._plan.evaluation_tokens is None or self.tokens_per_second is None:
            return self._pause_s
        guess_s = (
            _EVALUATION_COST * self._plan.evaluation_tokens / max(self.tokens_per_second, 1e-6)
        )
        return {"evaluation": guess_s, **self._pause_s}

    def _num_pauses_left(self, kind: Pause, step: int) -> int:
        plan = self._plan
        interval = plan.evaluation_steps if kind == "evaluation" else plan.checkpoint_steps
        if interval is None:
            return 0
        num_in_all = math.ceil(plan.total_steps / interval)
        done_until = step if self._paused_at.get(kind) == step else step - 1
        return num_in_all - (
            num_in_all if done_until >= plan.total_steps else done_until // interval
        )

    def _tokens_left(self, step: int, steps_left: int) -> float | None:
        steps_per_epoch, tokens_per_epoch = self._plan.steps_per_epoch, self._plan.tokens_per_epoch
        if not steps_per_epoch or not tokens_per_epoch:
            return None
        epochs = int(step / steps_per_epoch + 1e-9)
        steps_to_epoch_end = (epochs + 1) * steps_per_epoch - step
        tokens_to_epoch_end = max((epochs + 1) * tokens_per_epoch - self._marks[-1].num_tokens, 0)
        within = min(steps_left, steps_to_epoch_end)
        return (
            tokens_to_epoch_end * within / steps_to_epoch_end
            + (steps_left - within) * tokens_per_epoch / steps_per_epoch
        )


class _StepFit:
    """Weighted least squares of seconds a step on its tokens, neither coefficient below 0; old steps are forgotten."""

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = 0.0
        self._tokens_squared = self._products = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        self._weight = _FORGETTING * self._weight + 1
        self._tokens = _FORGETTING * self._tokens + num_tokens
        self._seconds = _FORGETTING * self._seconds + seconds
        self._tokens_squared = _FORGETTING * self._tokens_squared + num_tokens**2
        self._products = _FORGETTING * self._products + num_tokens * seconds

    def seconds(self, num_steps: float, num_tokens: float | None) -> float:
        """Of `num_steps` steps that hold `num_tokens` tokens in all; None: as many a step as so far."""
        if num_tokens is None or self._tokens == 0:
            return num_steps * self._seconds / self._weight
        per_step, per_token = self._coefficients()
        return num_steps * per_step + num_tokens * per_token

    def _coefficients(self) -> tuple[float, float]:
        mean_tokens, mean_s = self._tokens / self._weight, self._seconds / self._weight
        variance = self._tokens_squared / self._weight - mean_tokens**2
        covariance = self._products / self._weight - mean_tokens * mean_s
        proportional = mean_s / mean_tokens
        prior = _PRIOR * mean_tokens**2 / self._weight
        per_token = (covariance + prior * proportional) / (variance + prior)
        per_token = min(max(per_token, 0.0), proportional)
        return mean_s - per_token * mean_tokens, per_token
