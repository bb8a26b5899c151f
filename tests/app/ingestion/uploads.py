"""Shorthand for ingesting bytes as if they had been uploaded."""

import io
from typing import Any

import pytest

from app.ingestion.ingest import Upload, ingest
from app.ingestion.mapping import Mapping
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
            count_tokens=count_words,
            max_tokens=max_tokens,
        )

    def rows(self, content: bytes | str, filename: str = "corpus.csv", **said: Any) -> list[Row]:
        return list(self.store.rows(self.take(content, filename, **said).id))

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


def faults(error: InvalidError) -> list[tuple[int, str | None, str]]:
    """(line, column, code) of every fault in a refusal."""
    return [(e["line"], e["column"], e["code"]) for e in error.extra["report"]["errors"]]
