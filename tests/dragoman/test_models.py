"""The answers are written down by hand; this holds them against the server's own description."""

from typing import Any

import pytest
from pydantic import BaseModel

from app.main import create_app
from core.settings import Settings
from dragoman import models

PAIRS: list[tuple[type[BaseModel], str]] = [
    (models.Translation, "TranslateResponse"),
    (models.Translations, "TranslateResponse"),
    (models.Language, "LanguageOut"),
    (models.Dataset, "Dataset"),
    (models.DatasetReport, "DatasetReport"),
    (models.RowError, "RowError"),
    (models.TokenStatistics, "TokenStatistics"),
    (models.Job, "JobOut"),
    (models.JobCheckpoint, "JobCheckpoint"),
    (models.Progress, "Progress"),
    (models.TrainPoint, "TrainPoint"),
    (models.EvalPoint, "EvalPoint"),
    (models.Evaluation, "Evaluation"),
    (models.Sample, "Sample"),
    (models.Adapter, "AdapterOut"),
    (models.AdapterVersion, "VersionOut"),
    (models.Readiness, "Readiness"),
]


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = Settings(
        _env_file=None, data_dir=tmp_path_factory.mktemp("data"), redis_url="redis://unused"
    )
    found: dict[str, Any] = create_app(settings).openapi()["components"]["schemas"]
    return found


@pytest.mark.parametrize(
    ("model", "name"), PAIRS, ids=lambda value: getattr(value, "__name__", value)
)
def test_every_field_is_one_of_the_servers(
    schemas: dict[str, Any], model: type[BaseModel], name: str
) -> None:
    served = set(schemas[name]["properties"])
    known = {field.alias or name for name, field in model.model_fields.items()}
    assert known <= served


def test_a_newer_server_may_say_more() -> None:
    check = models.Check.model_validate({"ok": True, "since": "yesterday"})
    assert check.model_dump()["since"] == "yesterday"
