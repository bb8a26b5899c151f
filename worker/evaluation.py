"""The judgement on what was trained: answers of base, current version and candidate to held-out rows, and their scores."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from core.adapter_version import AdapterVersion
from core.adapters import BASE, AdapterRegistry
from core.datasets import Row
from core.errors import InvalidError, NotFoundError
from core.jobs import Evaluation, Sample
from core.prompt import PromptRenderer
from core.training_config import JobConfig
from worker.gate import decide
from worker.generation import Generator, Way, second_adapter
from worker.scores import chance_of_fit, compare, sentence_scores

logger = logging.getLogger(__name__)

_CANDIDATE = "candidate"
_NUM_WORST = 5
_NUM_SPREAD = 5
_MAX_SAMPLE_CHARS = 1000


@dataclass(frozen=True)
class Rival:
    """The adapter's current version and its answers, [rows]."""

    ref: str
    answers: list[str]


def find_current(
    registry: AdapterRegistry, name: str, base_fingerprint: str
) -> AdapterVersion | None:
    """The version of `name` to compare with; None if there is none.

    Raises InvalidError, NotFoundError if there is one that cannot be compared with.
    """
    try:
        current = registry.get(name).current
    except NotFoundError:
        return None
    if current is None:
        return None
    version = registry.version(name, current)
    if version.seal.base_fingerprint != base_fingerprint:
        raise InvalidError(
            f"it was trained on another base model, {version.seal.base_model}",
            code="adapter_for_other_base",
        )
    return version


def ask_current(
    model: PeftModel,
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    version: AdapterVersion,
    rows: Sequence[Row],
    stop_token_ids: frozenset[int],
) -> Rival:
    """Answers of `version`, asked through its own sealed prompt; `stop_token_ids` are for a seal that has none.

    Raises InvalidError `adapter_broken`.
    """
    seal = version.seal
    renderer = PromptRenderer(tokenizer, seal.prompt)
    way = Way(renderer, frozenset(seal.stop_token_ids) or stop_token_ids)
    try:
        with second_adapter(model, version.path):
            return Rival(version.ref, generator.answer([row.prompt for row in rows], way))
    except TemplateError as error:
        raise InvalidError(
            f"its chat template is unusable: {error}", code="adapter_broken"
        ) from error


def evaluate(
    model: PeftModel,
    generator: Generator,
    rows: Sequence[Row],
    way: Way,
    rival: Rival | None,
    config: JobConfig,
) -> Evaluation:
    """Judges the active adapter of `model` on the first exchange of each of `rows`, and decides by `config.evaluation`.

    The base is asked in the candidate's `way`.
    """
    sources = [row.prompt for row in rows]
    targets = [row.completion for row in rows]
    answers = {_CANDIDATE: generator.answer(sources, way)}
    with model.disable_adapter():
        answers[BASE] = generator.answer(sources, way)
    if rival is not None:
        answers[rival.ref] = rival.answers
    against = rival.ref if rival else BASE
    comparison = compare(against, _CANDIDATE, answers, targets, config.target)
    scores = comparison.scores
    section = config.evaluation
    verdict = decide(
        section,
        against=against,
        reference=scores[against],
        candidate=scores[_CANDIDATE],
        p_values=comparison.p_values,
        chance_of_fit=chance_of_fit(answers[_CANDIDATE], targets),
    )
    logger.info("%d held-out rows are judged. %s", len(rows), verdict.reason)
    return Evaluation(
        metric=section.metric,
        rows=len(rows),
        against=against,
        base=scores[BASE],
        current=scores[against] if rival else None,
        candidate=scores[_CANDIDATE],
        gain=verdict.gain,
        p_value=comparison.p_values[section.metric],
        promoted=verdict.promoted,
        reason=verdict.reason,
        signatures=comparison.signatures,
        samples=_samples(rows, answers, against if rival else None),
    )


def _samples(
    rows: Sequence[Row], answers: dict[str, list[str]], current: str | None
) -> list[Sample]:
    """The candidate's worst by sentence chrF++, worst first, and then others from all over the rows."""
    scores = sentence_scores(answers[_CANDIDATE], [row.completion for row in rows])
    by_score = sorted(range(len(rows)), key=scores.__getitem__)
    worst, others = by_score[:_NUM_WORST], sorted(by_score[_NUM_WORST:])
    num_spread = min(_NUM_SPREAD, len(others))
    spread = [others[i * len(others) // num_spread] for i in range(num_spread)]
    return [
        Sample(
            source=_cut(rows[i].prompt),
            reference=_cut(rows[i].completion),
            base=_cut(answers[BASE][i]),
            current=_cut(answers[current][i]) if current else None,
            candidate=_cut(answers[_CANDIDATE][i]),
        )
        for i in (*worst, *spread)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SAMPLE_CHARS else f"{text[:_MAX_SAMPLE_CHARS]}…"
