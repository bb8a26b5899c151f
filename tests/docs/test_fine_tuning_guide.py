"""The fine-tuning guide and its tutorials speak of the settings, defaults, warnings and pictures that there are."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig
from pydantic import BaseModel
from trl import SFTConfig

from core.base_model import EMBEDDED
from core.presets import PRESETS
from core.training_config import JobConfig
from dragoman.cli.train import build_config
from worker.precision import Precision
from worker.resolve import resolve_config

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "fine-tuning.md"
DOCUMENTS = [GUIDE, *sorted((ROOT / "docs").glob("tutorial-*.md"))]
ORIGINS = {"measured", "library", "ours", "chosen"}
MAX_PICTURE_BYTES = 60_000
CPU = Precision(torch.device("cpu"), torch.float32)


class Setting(NamedTuple):
    """A row of the guide's table."""

    default: Any
    origin: str
    effect: str
    on_cpu: str


def rows_of_table(first_column: str) -> dict[str, list[str]]:
    """The other cells of the guide's table whose first column has that name, by what its first cell has in backticks."""
    text = GUIDE.read_text(encoding="utf-8")
    table = re.search(rf"^\| {first_column} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    assert table, first_column
    rows = [line.strip("| ").split(" | ") for line in table[1].splitlines()]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def settings() -> dict[str, Setting]:
    return {
        key: Setting(json.loads(default.strip("`")), *others)
        for key, (default, *others) in rows_of_table("key").items()
    }


def flat(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, in the order of the fields."""
    found: dict[str, Any] = {}
    for name, value in config:
        is_section = isinstance(value, BaseModel)
        found |= flat(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return found


def test_every_setting_is_in_the_table_with_its_default() -> None:
    documented = {key: setting.default for key, setting in settings().items()}
    assert documented == flat(JobConfig())
    assert list(documented) == list(flat(JobConfig()))


def test_defaults_come_from_where_the_table_says() -> None:
    library = {
        "training": {field.name: field.default for field in fields(SFTConfig)},
        "lora": {field.name: field.default for field in fields(LoraConfig)},
    }
    for key, setting in settings().items():
        assert setting.origin in ORIGINS, key
        if setting.origin == "library":
            section, name = key.split(".")
            assert library[section][name] == setting.default, key
        if setting.origin == "chosen":
            assert setting.default in (None, "auto"), key


def test_learning_rates_are_those_that_are_chosen() -> None:
    named = re.findall(r"([\d.]+e-\d) at ([\d,]+)", settings()["training.learning_rate"].effect)
    assert named
    for rate, width in named:
        settled = JobConfig().settled(num_rows=100, hidden_size=int(width.replace(",", "")))
        assert settled.training.learning_rate == float(rate)


@pytest.mark.parametrize("preset", PRESETS)
def test_only_what_the_table_says_is_replaced_on_a_cpu(preset: str) -> None:
    asked = JobConfig.model_validate({"preset": preset})
    used, _ = resolve_config(asked, base_folder=EMBEDDED, precision=CPU, num_rows=100)
    before, after = flat(asked), flat(used)
    replaced = {key for key, value in before.items() if value is not None and after[key] != value}
    # Names of layers and what a checkpoint is quantised with are the base's, not the device's.
    replaced -= {"lora.target_modules", "quantization.bnb_4bit_use_double_quant"}
    table = settings()
    assert not [key for key in replaced if table[key].on_cpu == "the same"]


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ("lora.init_lora_weights", "loftq"),
        ("quantization.bnb_4bit_compute_dtype", "float16"),
        ("training.optim", "paged_adamw_8bit"),
        ("training.bf16", True),
        ("training.fp16", True),
        ("training.activation_offloading", True),
    ],
)
def test_what_a_cpu_uses_instead(key: str, asked: Any) -> None:
    promised = re.search(r"becomes? `(\w+)`", settings()[key].on_cpu)
    assert promised
    section, name = key.split(".")
    config = JobConfig.model_validate({section: {name: asked}})
    used, warnings = resolve_config(config, base_folder=EMBEDDED, precision=CPU, num_rows=100)
    assert str(flat(used)[key]).lower() == promised[1]
    assert any(key in warning for warning in warnings)


def test_presets_are_those_that_are_told_of() -> None:
    advice = [cells[0] for cells in rows_of_table("you have").values()]
    told = [found[1] for found in map(re.compile(r"`([\w-]+)`").match, advice) if found]
    assert sorted(told) == sorted(PRESETS)


def test_every_warning_of_a_report_is_explained() -> None:
    sources = "\n".join(p.read_text() for p in sorted((ROOT / "app" / "ingestion").glob("*.py")))
    given = re.findall(r"(?:add_warning|add_tally|_warning)\(\s*(?:[\w.]+,\s*)?\"(\w+)\"", sources)
    assert set(rows_of_table("warning")) == set(given)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", text):
        path = document.parent / "".join(target)
        assert path.exists(), path
        if path.suffix == ".svg":
            assert path.stat().st_size < MAX_PICTURE_BYTES, path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_config_is_accepted(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    configs = [json.loads(found) for found in re.findall(r"config=(\{.*\})'", text)]
    for command in re.findall(r"dragoman train (?:.*\\\n)*.*", text):
        config = build_config(None, re.findall(r"--set '?([^\s']+)", command))
        config |= dict(re.findall(r"--(preset)[ =]([\w-]+)", command))
        configs.append(config)
    assert configs or document == GUIDE
    for config in configs:
        JobConfig.model_validate(config)
