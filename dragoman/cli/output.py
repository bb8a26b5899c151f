"""What commands print: tables and colours in a terminal, tab-separated lines in a pipe, JSON with --json."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dragoman.errors import ApiError

# A text from the server must not steer the terminal.
_CONTROLS = {c: None for c in (*range(32), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}


class Output:
    """Results go to stdout, all else to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def json(self, value: Any) -> None:
        """One line, so that several make JSON lines."""
        print(json.dumps(_plain(value), ensure_ascii=False), flush=True)

    def say(self, text: str = "", style: str | None = None, end: str = "\n") -> None:
        """A result for people or pipes."""
        if self.out.is_terminal:
            self.out.print(Text(clean(text)), style=style, end=end)
        else:  # as it is: rich would wrap and expand tabs
            print(text, end=end, flush=True)

    def tell(self, value: Any, text: str) -> None:
        """`value` to programs, `text` to people."""
        if self.as_json:
            self.json(value)
        else:
            self.say(text)

    def note(self, text: str = "", style: str | None = None) -> None:
        """A remark on the way; nothing with --json."""
        if not self.as_json:
            self.err.print(Text(clean(text)), style=style)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """In a pipe: no header, and tabs between the cells, so that `cut` can take them."""
        cells = [[_cell(value) for value in row] for row in rows]
        if not self.out.is_terminal:
            for row in cells:
                print("\t".join(row))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*(Text(clean(cell)) for cell in row))
        self.out.print(table, soft_wrap=False)

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """`name: value` lines; those without a value are left out."""
        for name, value in pairs:
            if value is not None and value != "":
                self.say(f"{name + ':':<12}{_cell(value)}")


def report_error(error: Exception, *, as_json: bool) -> None:
    """One line on stderr."""
    if as_json:
        problem = error.to_dict() if isinstance(error, ApiError) else {"detail": describe(error)}
        print(json.dumps({"error": problem}, ensure_ascii=False), file=sys.stderr)
    else:
        # None where typer has printed the help instead.
        if message := clean(" ".join(describe(error).split())):
            print(f"dragoman: {message}", file=sys.stderr)


def describe(error: Exception) -> str:
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f" ({context.command_path} --help shows what there is)" if context else ""
        message = error.format_message()
        return f"{message}{hint}" if message else ""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return str(error)


def clean(text: str) -> str:
    return text.translate(_CONTROLS)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return " ".join(str(value).split())


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value
