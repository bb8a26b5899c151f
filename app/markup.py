"""Translating HTML: finds the text nodes, leaves the markup as it is."""

from bs4 import BeautifulSoup, NavigableString
from bs4.element import PreformattedString

_OPAQUE = {"script", "style", "code", "pre", "textarea", "kbd", "samp", "var"}


class HtmlDocument:
    """An HTML fragment whose text nodes can be read and replaced."""

    def __init__(self, html: str) -> None:
        self._soup = BeautifulSoup(html, "html.parser")
        self._nodes = [n for n in self._soup.find_all(string=True) if _is_translatable(n)]

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


def _is_translatable(node: NavigableString) -> bool:
    if isinstance(node, PreformattedString) or not str(node).strip():  # comments, doctypes, blanks
        return False
    for parent in node.parents:
        if parent.name in _OPAQUE or parent.get("translate") == "no":
            return False
        if parent.get("translate") == "yes":
            return True
    return True
