"""A second look at the rows of an upload, once all of them are known: languages, and what an evaluation would leak."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from app.ingestion.records import Tally
from app.ingestion.report import ReportBuilder
from app.ingestion.scripts import ScriptTally
from app.languages import detect
from core.datasets import read_prompts, read_rows
from core.holdout import HoldOut
from core.near_duplicates import NearDuplicates
from core.training_config import JobConfig

# Detecting a language takes a millisecond or two, so that not all rows of a large upload can be looked at.
_NUM_DETECTED = 400
_MAX_CHARS = 400
_LEAST_BYTES = 60  # of a text whose language can be told: 60 Latin letters, 20 Chinese characters
_LEAST_PROBABILITY = 0.95
_LEAST_TEXTS = 20
_NEARLY_ALL = 0.8  # less than of scripts: a detector errs

_Sides = tuple[str | None, str | None]


def review(rows: Path, scripts: ScriptTally, report: ReportBuilder) -> None:
    """Adds warnings to `report`, whose rows are those in the file `rows`."""
    _review_scripts(scripts, report)
    _review_languages(rows, scripts, report)
    _review_leaks(rows, report)


def _review_scripts(scripts: ScriptTally, report: ReportBuilder) -> None:
    found = scripts.misplaced(report.lines)
    report.add_tally(
        found.swapped,
        "sides_swapped",
        f"seem to have their sides swapped: sources are {found.source}, targets {found.target}",
    )
    for tally, side, script in (
        (found.of_source, "source", found.source),
        (found.of_target, "target", found.target),
    ):
        report.add_tally(
            tally, "wrong_script", f"have a {side} that is not written in {script}, as others are"
        )


def _review_languages(rows: Path, scripts: ScriptTally, report: ReportBuilder) -> None:
    step = -(-report.num_rows // _NUM_DETECTED)
    detected: list[tuple[int, _Sides]] = []
    for i, row in enumerate(read_rows(rows)):
        if i % step == 0:
            # A text in another script has been told of.
            fits = zip((row.prompt, row.completion), scripts.fit(i), strict=True)
            source, target = (_language(text) if does_fit else None for text, does_fit in fits)
            detected.append((report.lines[i], (source, target)))
    usual = [_usual([sides[n] for _, sides in detected]) for n in (0, 1)]
    swapped, odd = Tally(), (Tally(), Tally())
    for line, sides in detected:
        if None not in usual and usual[0] != usual[1] and [*sides] == usual[::-1]:
            swapped.add(line)
            continue
        for tally, language, usually in zip(odd, sides, usual, strict=True):
            if None not in (language, usually) and language != usually:
                tally.add(line)
    looked_at = f" (of {len(detected):,} rows looked at)" if step > 1 else ""
    report.add_tally(
        swapped,
        "sides_swapped",
        f"seem to have their sides swapped: sources are in {usual[0]!r}, targets in {usual[1]!r}"
        + looked_at,
    )
    for tally, side, language in zip(odd, ("source", "target"), usual, strict=True):
        report.add_tally(
            tally,
            "wrong_language",
            f"have a {side} that seems to be in another language than {language!r}, as others are"
            + looked_at,
        )


def _language(text: str) -> str | None:
    """Its code, where the text is long enough and the detector is sure."""
    if len(text.encode()) < _LEAST_BYTES:
        return None
    code, probability = detect(text[:_MAX_CHARS])[0]
    return code if probability >= _LEAST_PROBABILITY else None


def _usual(languages: Sequence[str | None]) -> str | None:
    counts = Counter(language for language in languages if language)
    if counts.total() < _LEAST_TEXTS:
        return None
    language, count = counts.most_common(1)[0]
    return language if count >= _NEARLY_ALL * counts.total() else None


def _review_leaks(rows: Path, report: ReportBuilder) -> None:
    # The width of the base model changes nothing about what is held out.
    config = JobConfig().settled(num_rows=report.num_rows, hidden_size=1)
    hold_out = HoldOut.choose(read_prompts(rows), config.evaluation.holdout or 0)
    held_out = [prompt for prompt in read_prompts(rows) if hold_out.holds(prompt)]
    if not held_out:
        return
    near = NearDuplicates(held_out)
    leaks = Tally()
    for line, prompt in zip(report.lines, read_prompts(rows), strict=True):
        if near.find(prompt) is not None and not hold_out.holds(prompt):
            leaks.add(line)
    report.add_tally(
        leaks,
        "possible_leaks",
        f"have nearly the same source as one of the {len(held_out)} rows that a job keeps for its "
        "evaluation by default",
    )
