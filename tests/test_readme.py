"""The README's table of settings is the settings."""

import re
from pathlib import Path

from core.settings import Settings

README = Path(__file__).resolve().parents[1] / "README.md"


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(
        r"^\| `DRAGOMAN_(\w+)` \| (?:`([^`]*)`)? ?\| (.+) \|$",
        README.read_text(encoding="utf-8"),
        re.M,
    )
    documented = {name.lower(): (default, what) for name, default, what in rows}
    expected = {
        name: (str(field.default), field.description)
        for name, field in Settings.model_fields.items()
    }
    assert documented == expected
