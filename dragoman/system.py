"""What a client asks of the server itself."""

from dragoman.calls import Call, reads
from dragoman.endpoint import endpoint
from dragoman.models import DetectedLanguage, Language, Readiness

_LANGUAGES = list[Language]
_DETECTED = list[DetectedLanguage]


class SystemEndpoints:
    @endpoint
    def ready(self) -> Call[Readiness]:
        """Whether requests can be served, and if not, what is missing."""
        return Call("GET", "/ready", reads(Readiness), accepted=frozenset({503}))

    @endpoint
    def languages(self) -> Call[_LANGUAGES]:
        """The source languages and, for each, its targets."""
        return Call("GET", "/languages", reads(_LANGUAGES))

    @endpoint
    def detect(self, text: str) -> Call[_DETECTED]:
        """The languages that `text` may be in, likeliest first."""
        return Call("POST", "/detect", reads(_DETECTED), json={"q": text})
