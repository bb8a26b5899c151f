"""One request to the server, before anything is sent: the part that both clients share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent
from pydantic import TypeAdapter, ValidationError

from dragoman.errors import UnexpectedAnswerError, UnsendableError

T = TypeVar("T")

_MAX_SHOWN = 200  # characters of what came instead


@dataclass(frozen=True)
class Upload:
    """A file to send: a path, or the content itself with a name for it."""

    source: Path | bytes
    filename: str

    @classmethod
    def of(cls, file: str | Path | bytes, filename: str | None) -> "Upload":
        if isinstance(file, bytes):
            return cls(file, filename or "upload")
        return cls(Path(file), filename or Path(file).name)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO | bytes]:
        if isinstance(self.source, bytes):
            yield self.source
            return
        with self.source.open("rb") as file:
            yield file


@dataclass(frozen=True)
class Call(Generic[T]):
    """`idempotent`: it may be sent again where nobody knows whether it arrived."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] | None = None
    upload: Upload | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = True
    accepted: frozenset[int] = frozenset()  # statuses above 399 that are answers, not errors
    timeout: httpx.Timeout | None = None  # None: the client's

    @contextmanager
    def arguments(self) -> Iterator[dict[str, Any]]:
        """For httpx' build_request; an upload is open as long as the context lasts."""
        arguments: dict[str, Any] = {
            "method": self.method,
            "url": self.path,
            "params": {k: v for k, v in self.params.items() if v is not None},
            "headers": self.headers,
        }
        if self.json is not None:
            arguments["json"] = self.json
        if self.form is not None:
            arguments["data"] = self.form
        if self.timeout is not None:
            arguments["timeout"] = self.timeout
        if self.upload is None:
            yield arguments
            return
        with self.upload.opened() as content:
            yield arguments | {"files": {"file": (self.upload.filename, content)}}


def reads(kind: type[T] | Any) -> Callable[[httpx.Response], T]:
    """A reader of JSON answers of the type `kind`. It raises UnexpectedAnswerError."""
    adapter: TypeAdapter[T] = TypeAdapter(kind)

    def read(response: httpx.Response) -> T:
        try:
            return adapter.validate_json(response.content)
        except ValidationError as error:
            raise UnexpectedAnswerError(
                f"{response.request.method} {response.url} answered what a Dragoman server does not: "
                f"{_first_fault(error)}"
            ) from error

    return read


def reads_event(kind: type[T]) -> Callable[[ServerSentEvent], T]:
    """A reader of events that hold JSON of the type `kind`. It raises UnexpectedAnswerError, which shows what came."""
    adapter: TypeAdapter[T] = TypeAdapter(kind)

    def read(event: ServerSentEvent) -> T:
        try:
            return adapter.validate_json(event.data)
        except ValidationError as error:
            raise UnexpectedAnswerError(
                f"an event {event.event!r} holds {event.data[:_MAX_SHOWN]!r}, which a Dragoman server does not send: "
                f"{_first_fault(error)}"
            ) from error

    return read


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place + ': ' if place else ''}{first['msg']}"


def read_text(response: httpx.Response) -> str:
    return response.text


def read_nothing(response: httpx.Response) -> None:
    return None


def path(*parts: object) -> str:
    """A URL path, whatever the parts hold. Raises UnsendableError for those that would lead elsewhere."""
    for part in map(str, parts):
        if part in ("", ".", ".."):
            raise UnsendableError(f"{part!r} is no name and no id")
    return "/" + "/".join(quote(str(p), safe="") for p in parts)
