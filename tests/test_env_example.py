"""`.env.example` shows every setting with its default."""

import re
from pathlib import Path

import pytest

from core.settings import Settings

ROOT = Path(__file__).parents[1]
OF_COMPOSE = set(re.findall(r"\$\{(DRAGOMAN_\w+)", (ROOT / "docker-compose.yml").read_text())) - {
    f"DRAGOMAN_{name.upper()}" for name in Settings.model_fields
}


def lines() -> dict[str, str]:
    text = (ROOT / ".env.example").read_text()
    return dict(re.findall(r"^#?(DRAGOMAN_\w+)=(.*)$", text, flags=re.MULTILINE))


def test_every_setting_is_there_and_nothing_else() -> None:
    settings = {f"DRAGOMAN_{name.upper()}" for name in Settings.model_fields}
    assert lines().keys() == settings | OF_COMPOSE


def test_defaults_are_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # away from a .env of the person who runs this
    path = tmp_path / "all.env"
    path.write_text("\n".join(f"{name}={value}" for name, value in lines().items()))
    assert Settings(_env_file=path) == Settings(_env_file=None)
