import pytest

from core.volume import Volume
from tests.app.ingestion.uploads import Ingestion


@pytest.fixture
def ingestion(volume: Volume) -> Ingestion:
    return Ingestion(volume)
