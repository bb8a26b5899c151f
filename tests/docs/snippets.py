"""What a document asks its reader to type, and what it shows in answer."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
_OUTPUTS = ("json", "text")


@dataclass(frozen=True)
class Snippet:
    """`shown` is the output as the document has it; empty: it shows none. `line` is that of the code, from 1."""

    document: str
    line: int
    language: Literal["sh", "python"]
    code: str
    shown: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def read_snippets(document: str) -> list[Snippet]:
    """Blocks fenced as sh or python, each with the json or text block right behind it; and commands after a `$`."""
    found: list[Snippet] = []
    blocks = MarkdownIt().parse((ROOT / document).read_text(encoding="utf-8"))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        line = block.map[0] + 1 if block.map else 0
        if block.type == "fence" and block.info in ("sh", "python"):
            has_output = following and following.type == "fence" and following.info in _OUTPUTS
            shown = following.content if following and has_output else ""
            language: Literal["sh", "python"] = "sh" if block.info == "sh" else "python"
            found.append(Snippet(document, line + 1, language, block.content, shown))
        elif block.type == "code_block":
            found += commands_in(document, line, block.content)
    return found


def indented_blocks(document: str) -> list[Snippet]:
    """Blocks that are set off by four spaces, as Python."""
    blocks = MarkdownIt().parse((ROOT / document).read_text(encoding="utf-8"))
    return [
        Snippet(document, block.map[0] + 1, "python", block.content, "")
        for block in blocks
        if block.type == "code_block" and block.map
    ]


def commands_in(document: str, first_line: int, text: str) -> list[Snippet]:
    r"""`$ command \` with its further lines, then its output up to the next `$`."""
    found = []
    for match in re.finditer(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n?)*)", text, re.M):
        line = first_line + text.count("\n", 0, match.start())
        found.append(Snippet(document, line, "sh", match[1], match[2].strip()))
    return found
