"""`dragoman adapters`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.exit_codes import WrongUsageError
from dragoman.cli.follow import show_evaluation
from dragoman.cli.session import Session, command
from dragoman.models import Adapter, AdapterVersion, Evaluation

app = typer.Typer(
    help="Adapters: what there is, promote, roll back, in and out.", no_args_is_help=True
)

Ref = Annotated[
    str, typer.Argument(help="such as yoda, or yoda@2 for one version", metavar="ADAPTER")
]
VersionRef = Annotated[str, typer.Argument(help="such as yoda@2", metavar="ADAPTER@VERSION")]


@command(app, "list")
def list_adapters(session: Session) -> None:
    """List adapters."""
    adapters = session.client.adapters.list()
    if session.out.as_json:
        session.out.json(adapters)
        return
    session.out.table(
        ["adapter", "from", "to", "current", "versions", "description"],
        [
            (a.name, a.source, a.target, a.current, ",".join(map(str, a.versions)), a.description)
            for a in adapters
        ],
    )


@command(app, "show")
def show(session: Session, ref: Ref) -> None:
    """Show an adapter, or one version of it with its scores."""
    name, number = split(ref)
    out = session.out
    if number is not None:
        version = session.client.adapters.version(name, number)
        if out.as_json:
            out.json(version)
        else:
            show_version(session, version)
        return
    adapter = session.client.adapters.get(name)
    if out.as_json:
        out.json(adapter)
    else:
        out.fields(
            [
                ("adapter", adapter.name),
                ("about", adapter.description),
                ("languages", f"{adapter.source} -> {adapter.target}"),
                ("current", adapter.current),
                ("versions", ", ".join(map(str, adapter.versions))),
                (
                    "traffic",
                    ", ".join(f"{v}: {100 * share:.4g}%" for v, share in adapter.traffic.items()),
                ),
                ("in memory", adapter.resident),
            ]
        )


def show_version(session: Session, version: AdapterVersion) -> None:
    seal = version.seal
    dataset_id = seal.get("dataset_id")  # empty where it was trained elsewhere
    session.out.fields(
        [
            ("version", f"{version.ref}{' (current)' if version.current else ''}"),
            ("about", seal.get("description")),
            ("languages", f"{seal.get('source')} -> {seal.get('target')}"),
            ("size", f"{version.size_bytes / 1e6:.1f} MB"),
            ("base model", seal.get("base_model")),
            ("created", seal.get("created_at")),
            ("job", seal.get("job_id")),
            ("dataset", dataset_id and f"{dataset_id}, {seal.get('dataset_rows')} rows"),
        ]
    )
    if seal.get("evaluation"):
        evaluation = Evaluation.model_validate(seal["evaluation"])
        show_evaluation(session, evaluation, version.version)


@command(app, "promote")
def promote(session: Session, ref: VersionRef) -> None:
    """Make a version the one that its name stands for."""
    name, number = split_version(ref)
    _tell_current(session, session.client.adapters.promote(name, number))


@command(app, "rollback")
def rollback(session: Session, name: Annotated[str, typer.Argument(metavar="ADAPTER")]) -> None:
    """Go back to the version before the current one."""
    _tell_current(session, session.client.adapters.rollback(name))


@command(app, "traffic")
def traffic(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="ADAPTER")],
    shares: Annotated[
        list[str] | None,
        typer.Argument(metavar="VERSION=SHARE", help="such as 1=0.9 2=0.1; none: all to current"),
    ] = None,
) -> None:
    """Split the requests for an adapter among its versions."""
    try:
        parts = [share.split("=") for share in shares or []]
        wanted = {int(version): float(share) for version, share in parts}
    except ValueError as error:
        raise WrongUsageError(
            f"{' '.join(shares or [])!r} is not VERSION=SHARE, such as 1=0.9 2=0.1"
        ) from error
    session.client.adapters.set_traffic(name, wanted)
    show(session, name)


@command(app, "export")
def export(
    session: Session,
    ref: Ref,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a zip; yoda-2.zip if not given")
    ] = None,
) -> None:
    """Save a version, or the current one, as a zip of a PEFT folder."""
    name, number = split(ref)
    if number is None:
        number = session.client.adapters.get(name).current
    if number is None:
        raise WrongUsageError(f"{name} has no current version; name one, such as {name}@1")
    path = session.client.adapters.download(name, number, output or Path(f"{name}-{number}.zip"))
    session.out.tell(
        {"adapter": f"{name}@{number}", "output": str(path)},
        f"{path}: {name}@{number}, {path.stat().st_size / 1e6:.1f} MB",
    )


@command(app, "import")
def import_(
    session: Session,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="zip or tar")],
    *,
    name: Annotated[str, typer.Option("--adapter", "-a", help="its name here")],
    source: Annotated[str | None, typer.Option("--source", "-s", help="language")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="language")] = None,
    template: Annotated[
        str | None, typer.Option(help="the prompt it was trained with; holds {text}")
    ] = None,
    system: Annotated[str | None, typer.Option(help="its system prompt")] = None,
    description: Annotated[str | None, typer.Option()] = None,
    make_current: Annotated[bool, typer.Option("--make-current")] = False,
) -> None:
    """Take in a PEFT folder that fits the server's base model; what `export` wrote needs a name alone."""
    prompt = {"system": system, "template": template or "{text}"} if system or template else None
    version = session.client.adapters.import_(
        file,
        name,
        prompt=prompt,
        source=source,
        target=target,
        description=description,
        make_current=make_current,
    )
    session.out.tell(version, f"{version.ref}{', now current' if version.current else ''}")


@command(app, "delete")
def delete(
    session: Session,
    ref: VersionRef,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Delete a version that is not current, for good."""
    name, number = split_version(ref)
    if not yes:
        if not sys.stdin.isatty():
            raise WrongUsageError("without a terminal to ask at, deleting needs --yes")
        typer.confirm(f"delete {ref} for good?", abort=True, err=True)
    session.client.adapters.delete(name, number)
    session.out.tell({"deleted": ref}, f"{ref} deleted")


def split(ref: str) -> tuple[str, int | None]:
    """`yoda@2` -> yoda and 2; `yoda` -> yoda and None. Raises WrongUsageError."""
    name, at, number = ref.partition("@")
    if at and not number.isdecimal():
        raise WrongUsageError(f"{ref!r} names no version; yoda@2 does")
    return name, int(number) if at else None


def split_version(ref: str) -> tuple[str, int]:
    """Raises WrongUsageError."""
    name, number = split(ref)
    if number is None:
        raise WrongUsageError(f"{ref!r} names no version; {name}@1 does")
    return name, number


def _tell_current(session: Session, adapter: Adapter) -> None:
    session.out.tell(adapter, f"{adapter.name} is {adapter.name}@{adapter.current} now")
