"""Writes openapi.json: `python -m scripts.write_openapi`, from the root of the repository."""

import json
from pathlib import Path

from app.main import create_app
from core.settings import Settings

PATH = Path(__file__).resolve().parents[1] / "openapi.json"


def render() -> str:
    """The API's description, as the file holds it. Nothing is connected to."""
    settings = Settings(_env_file=None, redis_url="redis://localhost")
    return json.dumps(create_app(settings).openapi(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
