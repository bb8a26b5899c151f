"""The files and names that docs/architecture.md sends its reader to are there."""

import re

import pytest

from tests.docs.snippets import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`([\w/]+\.py)`", TEXT)))
NAMED = re.findall(r"`([\w/]+\.py)` \(`([\w.]+)`", TEXT)
ROOMS = ("", "app", "app/engine", "app/lora", "app/model", "app/routes", "core", "worker")


def places(file: str) -> list[str]:
    return [path for room in ROOMS if (path := f"{room}/{file}") and (ROOT / room / file).is_file()]


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_where_it_is_said_to_be(file: str) -> None:
    assert places(file)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_name_is_in_its_file(file: str, name: str) -> None:
    sources = [(ROOT / place.lstrip("/")).read_text(encoding="utf-8") for place in places(file)]
    defined = rf"\b(?:def|class) {re.escape(name.rpartition('.')[2])}\b"
    assert any(re.search(defined, source) for source in sources)
