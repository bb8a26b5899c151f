"""Translating HTML: finds the text nodes, leaves the markup as it is."""

from collections.abc import Iterator
from typing import TypeGuard

from bs4 import BeautifulSoup, NavigableString, ParserRejectedMarkup
from bs4.element import PageElement, PreformattedString, Tag

from core.errors import InvalidError

_OPAQUE = {"script", "style", "code", "pre", "textarea", "kbd", "samp", "var"}


class HtmlDocument:
    """An HTML fragment whose text nodes can be read and replaced."""

    def __init__(self, html: str) -> None:
        """Raises InvalidError `html_invalid` where the parser gives up."""
        try:
            self._soup = BeautifulSoup(html, "html.parser")
        except ParserRejectedMarkup as error:
            raise InvalidError(f"q is not HTML: {error}", code="html_invalid") from error
        self._nodes = list(_translatable(self._soup))

    @property
    def texts(self) -> list[str]:
        """The text of each translatable node, without the white space around it."""
        return [str(node).strip() for node in self._nodes]

    def replaced(self, translations: list[str]) -> str:
        """The document with each node's text replaced, in the order of `texts`. Call once."""
        for node, translation in zip(self._nodes, translations, strict=True):
            text = str(node)
            start = len(text) - len(text.lstrip())
            end = len(text.rstrip())
            node.replace_with(NavigableString(text[:start] + translation + text[end:]))
        return str(self._soup.decode(formatter="minimal"))


def _translatable(soup: BeautifulSoup) -> Iterator[NavigableString]:
    """Text nodes in order. Without recursion, and each tag looked at once, however deep the markup is."""
    pending: list[tuple[PageElement, bool]] = [(soup, True)]
    while pending:
        node, wanted = pending.pop()
        if isinstance(node, Tag):
            inside = _is_wanted_inside(node, wanted)
            pending += [(child, inside) for child in reversed(node.contents)]
        elif wanted and _is_text(node):
            yield node


def _is_text(node: PageElement) -> TypeGuard[NavigableString]:
    """Not a comment, a doctype or blank."""
    return (
        isinstance(node, NavigableString)
        and not isinstance(node, PreformattedString)
        and bool(node.strip())
    )


def _is_wanted_inside(tag: Tag, wanted: bool) -> bool:
    if tag.name in _OPAQUE or tag.get("translate") == "no":
        return False
    return wanted or tag.get("translate") == "yes"
