"""`dragoman train`: from a file to a live adapter."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dragoman.cli.exit_codes import WrongUsageError
from dragoman.cli.follow import follow
from dragoman.cli.session import Session, command
from dragoman.cli.upload import ColumnOption, EncodingOption, SkipOption, num_rows, upload


class _Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def register(app: typer.Typer) -> None:
    command(app, "train")(train)


def train(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="pairs or conversations: JSONL, JSON, CSV, TSV, TMX, Parquet",
        ),
    ] = None,
    *,
    adapter: Annotated[str, typer.Option("--adapter", "-a", help="its name, new or not")],
    dataset: Annotated[
        str | None, typer.Option(help="id of an uploaded dataset, not a file")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="language")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="language")] = None,
    preset: Annotated[
        str | None, typer.Option(help="fast, quality, yoda-phi3 or wenyan-llama")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="training.num_train_epochs")] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="a JSON file with the job's config"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="one key of the config, such as lora.r=32", metavar="KEY=VALUE"),
    ] = None,
    priority: Annotated[_Priority | None, typer.Option(help="which jobs start first")] = None,
    column: ColumnOption = None,
    skip_errors: SkipOption = False,
    encoding: EncodingOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="submit, and do not follow")] = False,
) -> None:
    """Fine-tune an adapter on a file: upload it, train, judge, publish. Ctrl-C leaves the job running."""
    out, client = session.out, session.client
    settings = build_config(config, set_ or [])
    for key, value in (
        ("preset", preset),
        ("source", source),
        ("target", target),
        ("training.num_train_epochs", epochs),
    ):
        if value is not None:
            set_value(settings, key, value)
    if (file is None) == (dataset is None):
        raise WrongUsageError("give either a FILE or --dataset")
    if file is None and (column or skip_errors or encoding):
        raise WrongUsageError("--column, --skip-errors and --encoding are for a FILE")
    if file is not None:
        data = upload(
            session, file, column=column, skip_errors=skip_errors, encoding=encoding, name=None
        )
    else:
        data = client.datasets.get(str(dataset))
    job = client.jobs.create(
        adapter,
        dataset_id=data.id,
        config=settings,
        priority=None if priority is None else priority.value,
    )
    if detach:
        if out.as_json:
            out.json(job)
        else:
            out.say(job.id)
            out.note(f"follow it: {session.hint(f'jobs follow {job.id}')}")
        return
    out.note(f"{job.id}: trains {adapter} on {num_rows(data)}; Ctrl-C leaves it running")
    first = data.preview[0].get("prompt") if data.preview else None
    follow(session, job.id, example=first)


def build_config(file: Path | None, assignments: list[str]) -> dict[str, Any]:
    """A job's config from a JSON file and `--set` options. Raises WrongUsageError."""
    config: dict[str, Any] = {}
    if file is not None:
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WrongUsageError(f"{file} is not JSON: {error}") from error
        if not isinstance(held, dict):
            raise WrongUsageError(f"{file} holds no JSON object")
        config = held
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise WrongUsageError(
                f"--set {assignment!r} is not KEY=VALUE, such as training.learning_rate=3e-4"
            )
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value  # cosine
        set_value(config, key, parsed)
    return config


def set_value(config: dict[str, Any], key: str, value: object) -> None:
    """Sets `training.learning_rate` and the like in place. Raises WrongUsageError where the way is blocked."""
    *sections, name = key.split(".")
    place: Any = config
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise WrongUsageError(f"{key}: {section} is {place!r} already, not a section")
    place[name] = value
