"""The Python client of a Dragoman server. Needs httpx and pydantic alone; `dragoman.cli` is the command line.

with dragoman.Client() as client:
    print(client.translate("The Force is strong in you!", adapter="yoda").text)
"""

from dragoman.async_client import AsyncClient
from dragoman.client import Client
from dragoman.errors import (
    ApiError,
    AuthenticationError,
    ConflictError,
    ConnectionFailedError,
    DragomanError,
    ForbiddenError,
    InvalidError,
    JobFailedError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
    UnexpectedAnswerError,
    UnsendableError,
)
from dragoman.events import JobEvent
from dragoman.models import (
    Adapter,
    AdapterVersion,
    Dataset,
    Evaluation,
    Job,
    PreviewRow,
    Readiness,
    Token,
    Translation,
    Translations,
)
from dragoman.translate_file import FileReport
from dragoman.translate_many import Line

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterVersion",
    "ApiError",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ConflictError",
    "ConnectionFailedError",
    "Dataset",
    "DragomanError",
    "Evaluation",
    "FileReport",
    "ForbiddenError",
    "InvalidError",
    "Job",
    "JobEvent",
    "JobFailedError",
    "Line",
    "NotFoundError",
    "PreviewRow",
    "Readiness",
    "TimedOutError",
    "Token",
    "Translation",
    "Translations",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnsendableError",
]
