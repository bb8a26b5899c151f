"""HTML in, HTML out: the text nodes change and nothing else."""

import time

import pytest

from app.markup import HtmlDocument
from core.errors import InvalidError


@pytest.mark.parametrize(
    ("html", "texts", "expected"),
    [
        ("<p>Hello <b>world</b>!</p>", ["Hello", "world", "!"], "<p>HELLO <b>WORLD</b>!</p>"),
        ("plain", ["plain"], "PLAIN"),
        ("a &amp; b &lt; c", ["a & b < c"], "A &amp; B &lt; C"),
        ("<p>\n  one\n</p>\n", ["one"], "<p>\n  ONE\n</p>\n"),
        ("<script>let a = 1</script><style>p{}</style>x", ["x"], "<script>let a = 1</script><style>p{}</style>X"),
        ("<code>keep</code> go", ["go"], "<code>keep</code> GO"),
        ('<i translate="no">keep</i> go', ["go"], '<i translate="no">keep</i> GO'),
        ('<a href="x?a=1&amp;b=2" title="t">go</a><!-- note --><br/>', ["go"], '<a href="x?a=1&amp;b=2" title="t">GO</a><!-- note --><br/>'),
        ('<p translate="no">a <b translate="yes">b</b></p>', ["b"], '<p translate="no">a <b translate="yes">B</b></p>'),
        ("", [], ""),
        ("<p></p>", [], "<p></p>"),
    ],
)  # fmt: skip
def test_round_trip(html: str, texts: list[str], expected: str) -> None:
    document = HtmlDocument(html)
    assert document.texts == texts
    assert document.replaced([t.upper() for t in texts]) == expected


def test_a_translation_that_looks_like_markup_stays_text() -> None:
    assert HtmlDocument("<p>x</p>").replaced(["<script>"]) == "<p>&lt;script&gt;</p>"


def test_deep_markup_takes_no_longer_than_flat() -> None:
    """A walk to the root from each node would take 14 seconds here."""
    started = time.perf_counter()
    document = HtmlDocument("<b>x" * 5000)
    assert len(document.texts) == 5000
    assert time.perf_counter() - started < 5


def test_what_the_parser_gives_up_on() -> None:
    with pytest.raises(InvalidError, match="not HTML"):
        HtmlDocument("<![x >")
