"""Whether a judged version is made current. Pure: scores in, verdict out."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from core.jobs import Scores
from core.training_config import EvaluationSection

SIGNIFICANT = 0.05
MAX_CHANCE_OF_FIT = 0.01

_MetricName = Literal["bleu", "chrf"]
_NAMES: dict[_MetricName, str] = {"bleu": "BLEU", "chrf": "chrF++"}


class Verdict(NamedTuple):
    """`gain` is in points of the section's metric; `reason` is a sentence for people."""

    promoted: bool
    gain: float
    reason: str


def decide(
    section: EvaluationSection,
    *,
    against: str,
    reference: Scores,
    candidate: Scores,
    p_values: Mapping[_MetricName, float | None],
    chance_of_fit: float | None,
) -> Verdict:
    """Compares `candidate` with `reference`, the scores of what is called `against`.

    `if_better`: its gain is at least `min_gain` (and more than nothing, where that is 0), the other metric is not
    significantly worse, and its answers belong to their rows. `p_values`: of the difference, by metric;
    `chance_of_fit`: that they would fit other rows as well. None: nothing is known of it.
    """
    gain = _gain(section.metric, reference, candidate)
    facts = _describe(section.metric, against, reference, candidate, p_values)
    if section.promote != "if_better":
        promoted = section.promote == "always"
        return Verdict(
            promoted, gain, f"{_outcome(promoted)}, as promote is {section.promote!r}: {facts}."
        )
    if gain < section.min_gain or gain == 0 == section.min_gain:
        asked = f"a gain of at least {section.min_gain:g}" if section.min_gain else "any gain"
        return Verdict(False, gain, f"{_outcome(False)}: {facts}; {asked} was asked for.")
    other: _MetricName = "chrf" if section.metric == "bleu" else "bleu"
    p_value = p_values[other]
    if _gain(other, reference, candidate) < 0 and p_value is not None and p_value < SIGNIFICANT:
        worse = _describe(other, against, reference, candidate, p_values)
        return Verdict(False, gain, f"{_outcome(False)}: {facts}, but {worse}.")
    if chance_of_fit is not None and chance_of_fit > MAX_CHANCE_OF_FIT:
        return Verdict(
            False,
            gain,
            f"{_outcome(False)}: {facts}, but its answers fit the targets of other rows as well as those of "
            f"their own (p = {chance_of_fit:.3f}); are the targets in the right order?",
        )
    return Verdict(True, gain, f"{_outcome(True)}: {facts}.")


def _gain(metric: _MetricName, reference: Scores, candidate: Scores) -> float:
    return round(float(getattr(candidate, metric) - getattr(reference, metric)), 2)


def _outcome(promoted: bool) -> str:
    return "Made current" if promoted else "Not made current"


def _describe(
    metric: _MetricName,
    against: str,
    reference: Scores,
    candidate: Scores,
    p_values: Mapping[_MetricName, float | None],
) -> str:
    gain = _gain(metric, reference, candidate)
    named = "the bare base" if against == "base" else against
    p_value = p_values[metric]
    certainty = "too few rows for a p-value" if p_value is None else f"p = {p_value:.3f}"
    if gain == 0:
        return f"its {_NAMES[metric]} of {getattr(candidate, metric):.1f} is that of {named}"
    return (
        f"its {_NAMES[metric]} of {getattr(candidate, metric):.1f} is {abs(gain):.2f} points "
        f"{'above' if gain > 0 else 'below'} {named}'s {getattr(reference, metric):.1f} ({certainty})"
    )
