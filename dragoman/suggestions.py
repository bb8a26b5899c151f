"""Better translations that people suggest: sent in one by one, got out as a dataset to train on."""

from pathlib import Path

from dragoman.calls import Call, read_nothing
from dragoman.downloads import save, save_async
from dragoman.endpoint import AsyncResource, Resource, endpoint


class SuggestionEndpoints:
    @endpoint
    def add(
        self,
        q: str,
        better: str,
        *,
        adapter: str | None = None,
        source: str | None = None,
        target: str | None = None,
    ) -> Call[None]:
        """Says that `better` is the right translation of `q`, to `adapter` or to that of the language pair.

        Raises NotFoundError, InvalidError; UnavailableError `suggestions_full`.
        """
        body = {"q": q, "s": better, "adapter": adapter, "source": source, "target": target}
        given = {key: value for key, value in body.items() if value is not None}
        return Call("POST", "/suggest", read_nothing, json=given, idempotent=False)


class Suggestions(SuggestionEndpoints, Resource):
    def download(self, target: str | Path, *, adapter: str | None = None) -> Path:
        """Writes those for `adapter`, or all, as JSON lines to the file `target`; `datasets.upload` takes it.

        Raises NotFoundError.
        """
        return save(self._transport, download_call(adapter), target)


class AsyncSuggestions(SuggestionEndpoints, AsyncResource):
    async def download(self, target: str | Path, *, adapter: str | None = None) -> Path:
        """Writes those for `adapter`, or all, as JSON lines to the file `target`; `datasets.upload` takes it.

        Raises NotFoundError.
        """
        return await save_async(self._transport, download_call(adapter), target)


def download_call(adapter: str | None) -> Call[None]:
    return Call("GET", "/suggestions", read_nothing, params={"adapter": adapter})
