"""HTML in, HTML out: the text nodes change and nothing else."""

import pytest

from app.markup import HtmlDocument


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
