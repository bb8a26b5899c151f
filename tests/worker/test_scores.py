"""Scores are sacreBLEU's own; what sacreBLEU does not say is said right."""

import random

import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from tests.worker.conftest import ROWS
from worker.scores import bleu_metric, chance_of_fit, compare, sentence_scores

SOURCES = [row.prompt for row in ROWS]
TARGETS = [row.completion for row in ROWS]
SHUFFLED = random.Random(1).sample(TARGETS, len(TARGETS))


def test_scores_are_those_of_sacrebleu() -> None:
    answers = {"base": SOURCES, "candidate": TARGETS, "third": SHUFFLED}
    comparison = compare("base", "candidate", answers, TARGETS, "en")
    for name, hypotheses in answers.items():
        bleu = sacrebleu.corpus_bleu(hypotheses, [TARGETS]).score
        chrf = sacrebleu.corpus_chrf(hypotheses, [TARGETS], word_order=2).score
        assert comparison.scores[name].bleu == pytest.approx(bleu, abs=0.005)
        assert comparison.scores[name].chrf == pytest.approx(chrf, abs=0.005)
    assert comparison.scores["candidate"].bleu == 100
    assert comparison.p_values == {"bleu": 0.001, "chrf": 0.001}
    assert "tok:13a" in comparison.signatures["BLEU"]
    assert "bs:1000|seed:12345" in comparison.signatures["BLEU"]
    assert "nw:2" in comparison.signatures["chrF2++"]


def test_p_value_is_sacrebleus_and_the_same_each_time() -> None:
    half = [*TARGETS[:16], *SOURCES[16:]]
    worse = [*TARGETS[:14], *SOURCES[14:]]
    runs = [
        compare("reference", "ours", {"reference": half, "ours": worse}, TARGETS, "en")
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    metrics = {"BLEU": sacrebleu.BLEU()}
    _, theirs = PairedTest([("a", half), ("b", worse)], metrics, [TARGETS], test_type="bs")()
    assert runs[0].p_values["bleu"] == pytest.approx(theirs["BLEU"][1].p_value, abs=1e-4)
    assert theirs["BLEU"][1].p_value > 0.01


def test_equal_answers_do_not_differ() -> None:
    """sacreBLEU says 0.001."""
    comparison = compare("a", "b", {"a": SOURCES, "b": list(SOURCES)}, TARGETS, "en")
    assert comparison.p_values == {"bleu": 1.0, "chrf": 1.0}


@pytest.mark.parametrize(("num_rows", "is_known"), [(1, False), (9, False), (10, True)])
def test_few_rows_have_no_p_value(num_rows: int, is_known: bool) -> None:
    answers = {"a": SOURCES[:num_rows], "b": TARGETS[:num_rows]}
    comparison = compare("a", "b", answers, TARGETS[:num_rows], "en")
    assert comparison.scores["b"].chrf == 100
    assert all((p is not None) == is_known for p in comparison.p_values.values())


def test_empty_answers() -> None:
    comparison = compare("a", "b", {"a": [""] * 32, "b": TARGETS}, TARGETS, "en")
    assert (comparison.scores["a"].bleu, comparison.scores["a"].chrf) == (0, 0)
    assert sentence_scores(["", TARGETS[0]], TARGETS[:2])[0] == 0


@pytest.mark.parametrize(
    ("language", "targets", "tokenizer"),
    [
        ("en", ["x"], "13a"),
        ("en-x-yoda", ["x"], "13a"),
        ("zh", ["x"], "zh"),
        ("zh-Hant-TW", ["x"], "zh"),
        ("lzh", ["x"], "zh"),
        ("cmn", ["x"], "zh"),
        ("th", ["x"], "char"),
        ("und", ["The sky is dark."], "13a"),
        ("und", ["天黑了。", "The sky"], "13a"),
        ("und", ["他昨天下午和朋友一起去公园散步了。"], "zh"),
        ("und", ["วันนี้อากาศดี"], "char"),
        ("und", ["...", ""], "13a"),
    ],
)
def test_tokenizer(language: str, targets: list[str], tokenizer: str) -> None:
    assert bleu_metric(language, targets).tokenizer_signature == tokenizer


@pytest.mark.parametrize(
    ("language", "targets"),
    [
        ("ja", ["x"]),
        ("ko", ["x"]),
        ("und", ["昨日の午後、公園を散歩しました。"]),
        ("und", ["오늘은 날씨가"]),
    ],
)
def test_mecab_where_it_is_installed(language: str, targets: list[str]) -> None:
    assert bleu_metric(language, targets).tokenizer_signature.startswith(
        ("ja-mecab", "ko-mecab", "char")
    )


def test_answers_that_fit_any_row() -> None:
    assert chance_of_fit(TARGETS, TARGETS) == 0.001
    assert chance_of_fit(SOURCES, TARGETS) == 0.001
    shuffled = chance_of_fit(SHUFFLED, TARGETS)
    assert shuffled is not None
    assert shuffled > 0.05
    assert chance_of_fit(["The same."] * 32, TARGETS) == 1
    assert chance_of_fit(TARGETS[:9], TARGETS[:9]) is None
    many = TARGETS * 20  # no more than some of them are looked at
    assert chance_of_fit(many, many) == 0.001
