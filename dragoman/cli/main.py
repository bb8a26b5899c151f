"""The command `dragoman`: its commands put together, and every failure as one line and an exit code."""

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

import dragoman
from dragoman.cli import adapters, datasets, doctor, jobs, serve, suggestions, train, translate
from dragoman.cli.exit_codes import EPILOG, ExitCode, code_of
from dragoman.cli.output import report_error
from dragoman.errors import DragomanError

app = typer.Typer(
    name="dragoman",
    help="Translate with, and fine-tune, the adapters of a Dragoman server.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
serve.register(app)
translate.register(app)
train.register(app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(adapters.app, name="adapters")
app.add_typer(datasets.app, name="datasets")
app.add_typer(suggestions.app, name="suggestions")
doctor.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dragoman {dragoman.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="and exit")
    ] = False,
) -> None:
    pass


def main() -> int:
    """Returns the exit code; see ExitCode."""
    as_json = "--json" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Programs get UTF-8 whatever the locale; a terminal that cannot show a character shows its number.
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        # Not standalone, since typer draws a box of several lines around a usage error.
        return int(app(prog_name="dragoman", standalone_mode=False) or 0)
    except typer.Abort:
        return ExitCode.FAILED
    except (DragomanError, OSError, typer.TyperException) as error:
        report_error(error, as_json=as_json)
        return code_of(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
