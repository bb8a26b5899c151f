"""One service for all documents, which are read one after the other."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reader import Reader
from tests.dragoman.conftest import running_service


@pytest.fixture(scope="module")
def reader(
    _no_settings_from_outside: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    folder: Path = tmp_path_factory.mktemp("reader")
    with (
        running_service(tmp_path_factory.mktemp("service")) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("DRAGOMAN_URL", url)
        yield Reader(url, folder)
