"""A comparison that never finds anything would make the tests of the documents worthless."""

import pytest

from tests.docs.likeness import differences, matching_ids
from tests.docs.snippets import commands_in

JOB = "job-0123456789abcdef"
OTHER_JOB = "job-fedcba9876543210"


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ('{"translatedText": "Tall, I am.", "n": 1}', '{"translatedText": "I am tall.", "n": 1}'),
        ('{"a": 1, …}', '{"a": 1, "b": 2}'),
        ('{"a": …, "b": {…}, "c": […]}', '{"a": [1], "b": {"x": 1}, "c": [1, 2]}'),
        ('{"a": [1, …]}', '{"a": [1, 2, 3]}'),
        ('{"detail": "there are: …"}', '{"detail": "there are: yoda"}'),
        ('{"a": "…"}', '{"a": "anything"}'),
        ('{"id": "job-…"}', f'{{"id": "{JOB}"}}'),
        ('{"loss": 4.5}', '{"loss": 5}'),
        (f'{{"id": "{JOB}"}}', f'{{"id": "{OTHER_JOB}"}}'),
        ('{"at": "2026-11-22T14:00:00.1Z"}', '{"at": "2027-01-01T00:00:00Z"}'),
        ('{"status": "queued"}', '{"status": "running"}'),
        ('{"started_at": null}', '{"started_at": "2027-01-01T00:00:00Z"}'),
        ("", "anything"),
        ("step 5 of 105: …, done", "step 12 of 300:  some,\nthings, done"),
        (
            'event: token\ndata: {"text": "A"}\n\nevent: done\ndata: {"n": 1, …}',
            'event: token\ndata: {"text": "B"}\n\nevent: token\ndata: {"text": "C"}\n\n'
            'event: done\ndata: {"n": 2, "m": 3}\nid: 7-0\n\n',
        ),
    ],
)
def test_alike(shown: str, real: str) -> None:
    assert differences(shown, real) == []


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1, "b": 2}', '{"a": 1}'),
        ('{"a": 1, …}', '{"b": 1}'),
        ('{"a": {"b": true}}', '{"a": {"b": false}}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": [1, 2]}', '{"a": [1]}'),
        ('{"a": [1]}', '{"a": [1, 2]}'),
        ('{"a": [1, …]}', '{"a": [2, 1]}'),
        ('{"translatedText": "a"}', '{"translatedText": ["a"]}'),
        ('{"status": "queued"}', '{"status": "failed"}'),
        ('{"detail": "there are: …"}', '{"detail": "there is none"}'),
        ('{"adapter": "yoda@1"}', '{"adapter": "yoda@2"}'),
        ('{"loss": 4.5}', '{"loss": "high"}'),
        ('{"a": 1}', "<html>"),
        ("succeeded mine@1", "failed"),
        ("first, second", "second, first"),
        ('event: done\ndata: {"n": 1}', 'event: token\ndata: {"n": 1}'),
        ('event: done\ndata: {"n": 1}', 'event: done\ndata: {"m": 1}'),
        (
            'event: done\ndata: {}\n\nevent: token\ndata: {"text": "A"}',
            'event: token\ndata: {"text": "A"}\n\nevent: done\ndata: {}',
        ),
    ],
)
def test_not_alike(shown: str, real: str) -> None:
    assert differences(shown, real) != []


def test_ids_are_matched_by_their_order() -> None:
    shown = f"ds-0123456789abcdef, {JOB}, {JOB}"
    real = f"ds-1111111111111111, {OTHER_JOB}"
    assert matching_ids(shown, real) == {
        "ds-0123456789abcdef": "ds-1111111111111111",
        JOB: OTHER_JOB,
    }


def testcommands_in_and_their_output_are_told_apart() -> None:
    text = "$ one \\\n    --more\nsaid\nmore\n\n$ two\n"
    found = commands_in("x.md", 10, text)
    assert [(s.line, s.code, s.shown) for s in found] == [
        (10, "one \\\n    --more", "said\nmore"),
        (15, "two", ""),
    ]
