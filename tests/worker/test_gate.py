"""When a version is made current."""

import pytest

from core.jobs import Scores
from core.training_config import EvaluationSection
from worker.gate import Verdict, decide

BASE = Scores(bleu=40.0, chrf=60.0)


def judge(
    bleu: float,
    chrf: float,
    *,
    p_bleu: float | None = 0.5,
    p_chrf: float | None = 0.5,
    chance_of_fit: float | None = 0.001,
    against: str = "base",
    **section: object,
) -> Verdict:
    return decide(
        EvaluationSection.model_validate(section),
        against=against,
        reference=BASE,
        candidate=Scores(bleu=bleu, chrf=chrf),
        p_values={"bleu": p_bleu, "chrf": p_chrf},
        chance_of_fit=chance_of_fit,
    )


@pytest.mark.parametrize(
    ("verdict", "promoted"),
    [
        (judge(41, 60), True),
        (judge(40.01, 60), True),
        (judge(40, 60), False),  # no better
        (judge(39.9, 70), False),
        (judge(41, 60, min_gain=1), True),
        (judge(40.99, 60, min_gain=1), False),
        (judge(39, 60, min_gain=-1), True),  # a loss that was allowed
        (judge(40, 60, min_gain=-1), True),
        (judge(38.9, 60, min_gain=-1), False),
        # The other metric
        (judge(50, 55), True),
        (judge(50, 55, p_chrf=0.049), False),
        (judge(50, 55, p_chrf=None), True),
        (judge(50, 65, p_chrf=0.001), True),
        (judge(50, 60, metric="chrf"), False),
        (judge(40, 61, metric="chrf"), True),
        (judge(30, 61, metric="chrf", p_bleu=0.001), False),
        (judge(30, 61, metric="chrf", p_bleu=0.2, p_chrf=0.001), True),
        # Answers that fit any row
        (judge(50, 70, chance_of_fit=0.3), False),
        (judge(50, 70, chance_of_fit=0.01), True),
        (judge(50, 70, chance_of_fit=None), True),
        # As it was asked for
        (judge(0, 0, promote="always", chance_of_fit=0.9, p_chrf=0.001), True),
        (judge(100, 100, promote="never"), False),
    ],
)
def test_verdict(verdict: Verdict, promoted: bool) -> None:
    assert verdict.promoted is promoted
    assert verdict.reason.startswith("Made current" if promoted else "Not made current")
    assert verdict.reason.endswith((".", "?"))


@pytest.mark.parametrize(
    ("verdict", "gain", "reason"),
    [
        (
            judge(52.34, 70, p_bleu=0.001),
            12.34,
            "Made current: its BLEU of 52.3 is 12.34 points above the bare base's 40.0 (p = 0.001).",
        ),
        (
            judge(38.5, 70, against="yoda@2", p_bleu=None),
            -1.5,
            "Not made current: its BLEU of 38.5 is 1.50 points below yoda@2's 40.0 (too few rows for a "
            "p-value); any gain was asked for.",
        ),
        (
            judge(40, 70, min_gain=0.5),
            0,
            "Not made current: its BLEU of 40.0 is that of the bare base; a gain of at least 0.5 was asked for.",
        ),
        (
            judge(50, 55, p_chrf=0.004),
            10,
            "Not made current: its BLEU of 50.0 is 10.00 points above the bare base's 40.0 (p = 0.500), but "
            "its chrF++ of 55.0 is 5.00 points below the bare base's 60.0 (p = 0.004).",
        ),
        (
            judge(42, 70, chance_of_fit=0.4),
            2,
            "Not made current: its BLEU of 42.0 is 2.00 points above the bare base's 40.0 (p = 0.500), but "
            "its answers fit the targets of other rows as well as those of their own (p = 0.400); are the "
            "targets in the right order?",
        ),
        (
            judge(40, 61, metric="chrf", promote="never"),
            1,
            "Not made current, as promote is 'never': its chrF++ of 61.0 is 1.00 points above the bare base's "
            "60.0 (p = 0.500).",
        ),
    ],
)
def test_reason(verdict: Verdict, gain: float, reason: str) -> None:
    assert (verdict.gain, verdict.reason) == (gain, reason)
