"""Where the base model is, and what identifies it."""

import json
import shutil
from pathlib import Path

import pytest

from core.base_model import EMBEDDED, fingerprint, locate_base_model
from core.errors import ServiceError
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("a"), seed=0)


def test_empty_name_is_the_embedded_one() -> None:
    assert locate_base_model("") == EMBEDDED
    assert (EMBEDDED / "model.safetensors").is_file()


def test_local_path(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate_base_model(str(tiny)) == tiny.resolve()
    monkeypatch.chdir(tiny.parent)
    assert locate_base_model(tiny.name) == tiny.resolve()


@pytest.mark.parametrize("name", ["no such/model/anywhere", "../nowhere", "with space"])
def test_what_is_nowhere(name: str) -> None:
    with pytest.raises(ServiceError) as caught:
        locate_base_model(name)
    assert caught.value.code == "base_model_not_found"
    assert repr(name) in caught.value.message


def test_copies_are_the_same(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}, indent=4))
    assert fingerprint(copy) == fingerprint(tiny)


def test_siblings_differ(tiny: Path, tmp_path: Path) -> None:
    sibling = make_tiny_model(tmp_path / "b", seed=1)
    assert fingerprint(sibling) != fingerprint(tiny)
    assert fingerprint(EMBEDDED) != fingerprint(tiny)
