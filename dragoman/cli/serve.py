"""`dragoman serve`: Redis, worker and server on this machine."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dragoman.errors import DragomanError


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on; 0: any free one")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder for all that it keeps")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="local path or hub name; the embedded one if not given")
    ] = None,
) -> None:
    """Start Redis, worker and server here; Ctrl-C stops them.

    Everything else is set with environment variables, or in a .env file.
    """
    if importlib.util.find_spec("embedded") is None:
        raise DragomanError(
            "the server is not installed here, only its client; install the whole of Dragoman"
        )
    wanted = {"HOST": host, "PORT": port, "DATA_DIR": data_dir, "BASE_MODEL": base_model}
    chosen = {f"DRAGOMAN_{k}": str(v) for k, v in wanted.items() if v is not None}
    # Becomes that process, so that signals reach it and its exit code is ours.
    os.execve(sys.executable, [sys.executable, "-m", "embedded"], os.environ | chosen)  # noqa: S606
