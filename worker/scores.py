"""sacreBLEU's scores of several translators on the same rows, and whether they differ by more than chance.

BLEU (Papineni et al. 2002) and chrF++ (Popović 2017) as in Post 2018, "A Call for Clarity in Reporting BLEU Scores";
paired bootstrap as in Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from langcodes import Language
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from core.jobs import Scores

MetricName = Literal["bleu", "chrf"]

_CHRF = {"word_order": 2}  # chrF++
_NUM_RESAMPLES = 1000
_MIN_RESAMPLES = 100
# Rows times resamples that are drawn at once: some 500 MB.
_MAX_DRAWN = 5_000_000
# Of fewer rows a bootstrap says nothing: of a single one all resamples are the same.
_MIN_ROWS_FOR_P = 10
_MAX_PERMUTED_ROWS = 50
_SEED = 12345  # sacreBLEU's own
_ROUNDING = 1e-9  # of a mean that was summed in another order

# Language -> sacreBLEU's tokenizers for it, the best first; one that is not installed is passed over.
_CHINESE = ("zh",)
_JAPANESE = ("ja-mecab", "char")
_KOREAN = ("ko-mecab", "char")
_UNSPACED = ("char",)
_DEFAULT = ("13a",)
_TOKENIZERS = {
    **dict.fromkeys(
        ("zh", "cmn", "lzh", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo"), _CHINESE
    ),
    "ja": _JAPANESE,
    "ko": _KOREAN,
    **dict.fromkeys(("th", "lo", "my", "km", "bo", "dz"), _UNSPACED),
}
# Script -> tokenizers, where the language's name says nothing. Kana first: Japanese has Han as well.
_SCRIPTS = (
    (re.compile(r"[\u3041-\u30ff]"), 0.1, _JAPANESE),
    (re.compile(r"[\uac00-\ud7af]"), 0.5, _KOREAN),
    (re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"), 0.5, _CHINESE),
    (re.compile(r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"), 0.5, _UNSPACED),
)


@dataclass(frozen=True)
class Comparison:
    """`scores` by translator, rounded to two places; `p_values` of the candidate against the reference, by metric.

    None: too few rows to tell. `signatures` say how each metric was computed.
    """

    scores: dict[str, Scores]
    p_values: dict[MetricName, float | None]
    signatures: dict[str, str]


def compare(
    reference: str,
    candidate: str,
    answers: Mapping[str, Sequence[str]],
    targets: Sequence[str],
    language: str,
) -> Comparison:
    """Scores all `answers`, [rows] by translator, against `targets`, [rows], texts in `language` (BCP 47).

    `reference` and `candidate` are the two translators that are compared.
    """
    ordered = dict.fromkeys((reference, candidate, *answers))  # PairedTest's baseline comes first
    test = PairedTest(
        [(name, answers[name]) for name in ordered],
        {"BLEU": bleu_metric(language, targets), "chrF": CHRF(**_CHRF)},
        [targets],
        test_type="bs",
        n_samples=max(_MIN_RESAMPLES, min(_NUM_RESAMPLES, _MAX_DRAWN // len(targets))),
    )
    signatures, results = test()
    names: dict[MetricName, str] = {"bleu": "BLEU", "chrf": "chrF2++"}
    scores = {
        name: Scores(**{key: round(results[column][i].score, 2) for key, column in names.items()})
        for i, name in enumerate(ordered)
    }
    same = list(answers[reference]) == list(answers[candidate])
    p_values: dict[MetricName, float | None] = {}
    for key, column in names.items():
        p_value = round(float(results[column][1].p_value), 4)
        # Of equal answers sacreBLEU says 0.001: no resample differs by more than nothing.
        p_values[key] = 1.0 if same else p_value if len(targets) >= _MIN_ROWS_FOR_P else None
    return Comparison(
        scores,
        p_values,
        {column: str(signatures[column]) for column in results if column != "System"},
    )


def sentence_scores(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    """chrF++ of each answer, 0 to 100, [rows]."""
    metric = CHRF(**_CHRF)
    pairs = zip(answers, targets, strict=True)
    return [float(metric.sentence_score(answer, [target]).score) for answer, target in pairs]


def chance_of_fit(answers: Sequence[str], targets: Sequence[str]) -> float | None:
    """p-value of a permutation test: that answers dealt to the rows at random fit `targets` as well as they do now.

    It is high for a translator that has learnt what targets look like and does not heed its source, such as one
    trained on targets in the wrong order; its BLEU may be significantly above the base's all the same. None: too few
    rows to tell. Of many rows, some that are evenly spread are taken.
    """
    num_rows = min(len(targets), _MAX_PERMUTED_ROWS)
    if num_rows < _MIN_ROWS_FOR_P:
        return None
    metric = CHRF(**_CHRF)
    chosen = [i * len(targets) // num_rows for i in range(num_rows)]
    fit = np.array(
        [[metric.sentence_score(answers[i], [targets[j]]).score for j in chosen] for i in chosen]
    )  # [answers, targets]
    permute = np.random.default_rng(_SEED).permutation
    rows = np.arange(num_rows)
    by_chance = [fit[rows, permute(num_rows)].mean() for _ in range(_NUM_RESAMPLES)]
    as_they_are = fit[rows, rows].mean() - _ROUNDING
    num_as_good = int(np.sum(np.array(by_chance) >= as_they_are))
    return round((num_as_good + 1) / (_NUM_RESAMPLES + 1), 4)


def bleu_metric(language: str, targets: Sequence[str]) -> BLEU:
    """BLEU with the tokenizer for `language`, or for the script of `targets` where the tag says nothing of it."""
    known = _TOKENIZERS.get(Language.get(language).language or "und")
    for name in known or _by_script(targets):
        try:
            return BLEU(tokenize=name)
        except RuntimeError:  # MeCab is not installed
            continue
    raise AssertionError("the last tokenizer of each language is always installed")


def _by_script(targets: Sequence[str]) -> tuple[str, ...]:
    letters = "".join(filter(str.isalpha, "".join(targets[:1000])))
    for script, share, tokenizers in _SCRIPTS:
        if len(script.findall(letters)) > share * len(letters):
            return tokenizers
    return _DEFAULT
