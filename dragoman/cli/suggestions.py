"""`dragoman suggestions`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.session import Session, command

app = typer.Typer(
    help="Better translations that people suggest: a dataset to train on.", no_args_is_help=True
)

AdapterOption = Annotated[
    str | None, typer.Option("--adapter", "-a", help="such as yoda", metavar="ADAPTER")
]


@command(app, "add")
def add(
    session: Session,
    text: Annotated[str, typer.Argument(help="what was to be translated")],
    better: Annotated[str, typer.Argument(help="its right translation")],
    *,
    adapter: AdapterOption = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="language")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="language")] = None,
) -> None:
    """Suggest a better translation, to an adapter or to that of a language pair."""
    session.client.suggestions.add(text, better, adapter=adapter, source=source, target=target)
    session.out.tell({"success": True}, "kept")


@command(app, "export")
def export(
    session: Session,
    adapter: AdapterOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="yoda-suggestions.jsonl if not given"),
    ] = None,
) -> None:
    """Save the suggestions for an adapter, or all, as JSON lines, which `train` takes."""
    name = f"{adapter}-suggestions.jsonl" if adapter else "suggestions.jsonl"
    path = session.client.suggestions.download(output or Path(name), adapter=adapter)
    with path.open("rb") as file:
        count = sum(1 for _ in file)
    session.out.tell({"output": str(path), "count": count}, f"{path}: {count} suggestions")
    if count and adapter:
        session.out.note(
            "train on them: " + session.hint(f"train {shlex.quote(str(path))} --adapter {adapter}")
        )
