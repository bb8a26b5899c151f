"""What every command that speaks to a server shares: --url, --key, --json and the client."""

import inspect
import os
from collections.abc import Callable
from functools import cached_property, wraps
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from dragoman.cli.output import Output
from dragoman.client import Client
from dragoman.transport import DEFAULT_URL

P = ParamSpec("P")

_URL = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="DRAGOMAN_URL", help="the server", show_default=DEFAULT_URL, metavar="URL"
    ),
]
_KEY = Annotated[
    str | None,
    typer.Option("--key", envvar="DRAGOMAN_API_KEY", help="the API key", metavar="KEY"),
]
_JSON = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
_COMMON = [("url", _URL, None), ("key", _KEY, None), ("as_json", _JSON, False)]
_MAX_RETRIES = 2  # someone waits at the terminal


class Session:
    def __init__(self, *, url: str | None, key: str | None, as_json: bool) -> None:
        self.out = Output(as_json=as_json)
        self._url = url
        self._key = key

    @cached_property
    def client(self) -> Client:
        return Client(self._url, api_key=self._key, max_retries=_MAX_RETRIES)

    def hint(self, command: str) -> str:
        """What to type next, so that it works as it stands."""
        usual = os.environ.get("DRAGOMAN_URL") or DEFAULT_URL
        url = "" if self.client.url == usual.rstrip("/") else f" --url {self.client.url}"
        return f"dragoman {command}{url}"


def command(
    app: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Registers a function of a Session and its own options as a command, with the options that all have."""

    def register(
        function: Callable[Concatenate[Session, P], None],
    ) -> Callable[Concatenate[Session, P], None]:
        @wraps(function)
        def run(*, url: str | None, key: str | None, as_json: bool, **options: Any) -> None:
            session = Session(url=url, key=key, as_json=as_json)
            function(session, **options)  # type: ignore[call-arg]

        signature = inspect.signature(function, eval_str=True)
        common = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a, default=d)
            for n, a, d in _COMMON
        ]
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in list(signature.parameters.values())[1:]
        ]
        run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
        app.command(name)(run)
        return function

    return register
