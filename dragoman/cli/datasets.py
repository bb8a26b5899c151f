"""`dragoman datasets`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.session import Session, command
from dragoman.cli.train import build_config
from dragoman.cli.upload import ColumnOption, EncodingOption, SkipOption, num_rows, show_faults
from dragoman.cli.upload import upload as send

app = typer.Typer(help="Datasets: upload once, train often.", no_args_is_help=True)

DatasetId = Annotated[str, typer.Argument(help="such as ds-3b1f…", metavar="DATASET")]


@command(app, "list")
def list_datasets(session: Session) -> None:
    """List datasets, newest first."""
    datasets = session.client.datasets.list()
    if session.out.as_json:
        session.out.json(datasets)
        return
    session.out.table(
        ["dataset", "name", "format", "rows", "tokens", "created"],
        [
            (
                d.id,
                d.name,
                d.format,
                d.rows,
                d.report.tokens and d.report.tokens.total,
                d.created_at,
            )
            for d in datasets
        ],
    )


@command(app, "show")
def show(session: Session, dataset_id: DatasetId) -> None:
    """Show one dataset, with the report of its upload."""
    dataset = session.client.datasets.get(dataset_id)
    if session.out.as_json:
        session.out.json(dataset)
        return
    report, tokens = dataset.report, dataset.report.tokens
    session.out.fields(
        [
            ("dataset", dataset.id),
            ("name", dataset.name),
            ("format", dataset.format),
            ("rows", num_rows(dataset)),
            ("columns", ", ".join(f"{side}: {name}" for side, name in dataset.mapping.items())),
            ("created", dataset.created_at),
            ("dropped", report.unusable or None),
            ("duplicates", report.duplicates or None),
            ("tokens", tokens and f"{tokens.total} ({tokens.min} to {tokens.max} a row)"),
        ]
    )
    show_faults(session, report)
    for row in dataset.preview:
        session.out.fields([("  source", row.get("prompt")), ("  target", row.get("completion"))])


@command(app, "upload")
def upload(
    session: Session,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="the file's, if not given")] = None,
    column: ColumnOption = None,
    skip_errors: SkipOption = False,
    encoding: EncodingOption = None,
) -> None:
    """Upload a file of text pairs or conversations; every faulty line is told."""
    dataset = send(
        session, file, column=column, skip_errors=skip_errors, encoding=encoding, name=name
    )
    session.out.tell(dataset, dataset.id)


@command(app, "preview")
def preview(
    session: Session,
    dataset_id: DatasetId,
    n: Annotated[int, typer.Option("-n", min=1, max=100, help="rows")] = 3,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="a job's config, JSON")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="one key of the config", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Show rows as the model will see them, and which part is trained."""
    rows = session.client.datasets.preview(dataset_id, n=n, config=build_config(config, set_ or []))
    if session.out.as_json:
        session.out.json(rows)
        return
    session.out.table(
        ["row", "part", "tokens", "text"],
        [
            (
                number,
                "trained" if segment.trained else "read",
                segment.tokens,
                json.dumps(segment.text, ensure_ascii=False),
            )
            for number, row in enumerate(rows, 1)
            for segment in row.segments
        ],
    )


@command(app, "export")
def export(
    session: Session,
    dataset_id: DatasetId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="ds-….jsonl if not given")
    ] = None,
) -> None:
    """Save the rows as JSON lines, which `upload` takes again."""
    path = session.client.datasets.download(dataset_id, output or Path(f"{dataset_id}.jsonl"))
    session.out.tell({"dataset": dataset_id, "output": str(path)}, f"{path}: {dataset_id}")


@command(app, "delete")
def delete(session: Session, dataset_id: DatasetId) -> None:
    """Delete a dataset that no unfinished job needs."""
    session.client.datasets.delete(dataset_id)
    session.out.tell({"deleted": dataset_id}, f"{dataset_id} deleted")
