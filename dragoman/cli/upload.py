"""Sending a file of text pairs, and telling what is in it."""

from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.exit_codes import WrongUsageError
from dragoman.cli.session import Session
from dragoman.errors import InvalidError
from dragoman.models import Dataset, DatasetReport

_MOST_FAULTS = 20

ColumnOption = Annotated[
    list[str] | None,
    typer.Option(help="which column is which side; guessed if not given", metavar="source=NAME"),
]
SkipOption = Annotated[bool, typer.Option("--skip-errors", help="drop unusable rows")]
EncodingOption = Annotated[str | None, typer.Option(help="such as gb18030; found out if not given")]


def upload(
    session: Session,
    file: Path,
    *,
    column: list[str] | None,
    skip_errors: bool,
    encoding: str | None,
    name: str | None,
) -> Dataset:
    """Raises InvalidError, after every faulty line was shown."""
    out = session.out
    try:
        dataset = session.client.datasets.upload(
            file,
            name=name,
            mapping=parse_columns(column),
            on_error="skip" if skip_errors else "fail",
            encoding=encoding,
        )
    except InvalidError as error:
        report = DatasetReport.model_validate(error.extra.get("report") or {})
        show_faults(session, report)
        if report.errors and not out.as_json:
            out.note("mend these lines, or leave them out with --skip-errors")
        raise
    sides = ", ".join(f"{side}: {column}" for side, column in dataset.mapping.items())
    out.note(f"{file}: {num_rows(dataset)}, {dataset.format} ({sides}), dataset {dataset.id}")
    show_faults(session, dataset.report)
    return dataset


def num_rows(dataset: Dataset) -> str:
    """`40 pairs`, or what else its rows are."""
    noun = "conversation" if "messages" in dataset.mapping else "pair"
    return f"{dataset.rows} {noun}{'' if dataset.rows == 1 else 's'}"


def show_faults(session: Session, report: DatasetReport) -> None:
    """The faulty lines and the warnings, on stderr."""
    out = session.out
    for fault in report.errors[:_MOST_FAULTS]:
        where = f", {fault.column}" if fault.column else ""
        out.note(f"  line {fault.line}{where}: {fault.message}", style="red")
    if len(report.errors) > _MOST_FAULTS:
        out.note(
            f"  and {max(report.unusable, len(report.errors)) - _MOST_FAULTS} more", style="red"
        )
    for warning in report.warnings:
        lines = f" (lines {', '.join(map(str, warning.lines))})" if warning.lines else ""
        out.note(f"  {warning.message}{lines}", style="yellow")


def parse_columns(columns: list[str] | None) -> dict[str, str] | None:
    """`["source=english"]` -> a mapping. Raises WrongUsageError."""
    if not columns:
        return None
    mapping = {}
    for given in columns:
        side, equals, name = given.partition("=")
        if not equals or side not in ("source", "target"):
            raise WrongUsageError(f"--column {given!r} is not source=NAME or target=NAME")
        mapping[side] = name
    return mapping
