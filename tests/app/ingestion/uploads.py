"""Shorthand for ingesting bytes as if they had been uploaded."""

import io
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest

from app.ingestion.ingest import CountTokens, Upload, ingest
from app.ingestion.mapping import Mapping
from app.languages import detect
from core.datasets import Dataset, DatasetStore, Row
from core.errors import InvalidError
from core.volume import Volume


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


class Ingestion:
    """Ingests into one volume, and looks at what came of it."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.store = DatasetStore(volume)

    def take(
        self,
        content: bytes | str,
        filename: str = "corpus.csv",
        *,
        mapping: dict[str, str] | None = None,
        max_tokens: int = 512,
        count_tokens: CountTokens = count_words,
        **said: Any,
    ) -> Dataset:
        data = content.encode() if isinstance(content, str) else content
        upload = Upload(
            io.BytesIO(data),
            filename,
            mapping=Mapping.model_validate(mapping) if mapping else None,
            **said,
        )
        return ingest(
            upload,
            store=self.store,
            volume=self.volume,
            count_tokens=count_tokens,
            max_tokens=max_tokens,
        )

    def rows(self, content: bytes | str, filename: str = "corpus.csv", **said: Any) -> list[Row]:
        return list(self.store.rows(self.take(content, filename, **said).id))

    def try_out(self, content: bytes, filename: str) -> io.BytesIO:
        """The file after it was ingested or refused."""
        file = io.BytesIO(content)
        with suppress(InvalidError):
            ingest(
                Upload(file, filename),
                store=self.store,
                volume=self.volume,
                count_tokens=count_words,
            )
        return file

    def peak_memory(self, content: bytes, filename: str) -> int:
        """The most bytes that Python held at once while it ingested `content`."""
        detect("The detector's model is loaded once, and stays.")
        tracemalloc.start()
        try:
            self.take(content, filename)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def refusal(
        self, content: bytes | str, filename: str = "corpus.csv", **said: Any
    ) -> InvalidError:
        """The refusal of a file; checks that nothing is left of it."""
        with pytest.raises(InvalidError) as caught:
            self.take(content, filename, **said)
        assert caught.value.code == "dataset_invalid"
        assert caught.value.extra["report"]["errors"]
        assert self.leftovers() == []
        return caught.value

    def leftovers(self) -> list[str]:
        return [str(p) for p in self.volume.root.rglob("*") if p.is_file()] + [
            str(p) for p in (self.volume.root / "staging").iterdir()
        ]


def warnings(dataset: Dataset) -> dict[str, list[int]]:
    """The lines of each kind of warning."""
    for warning in dataset.report.warnings:
        assert warning.count >= len(warning.lines)
    return {warning.code: warning.lines for warning in dataset.report.warnings}


def faults(error: InvalidError) -> list[tuple[int, str | None, str]]:
    """(line, column, code) of every fault in a refusal."""
    return [(e["line"], e["column"], e["code"]) for e in error.extra["report"]["errors"]]
