"""One tiny model of each architecture, with its adapters, for all engine tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.adapter_version import AdapterVersion
from tests.app.harness import load_reference, make_adapter
from tests.tiny_models import make_tiny_model

# Ranks mix, targets differ, scaling is computed in every way there is.
VARIANTS: list[dict[str, Any]] = [
    {"r": 2},
    {"r": 4, "use_rslora": True},
    {"r": 8, "target_modules": ["down_proj"]},
    {"r": 3, "target_modules": ["o_proj", "down_proj"], "alpha_pattern": {"o_proj": 32}},
    {"r": 5, "rank_pattern": {"down_proj": 2}, "lora_alpha": 16},
]


@dataclass(frozen=True)
class Tiny:
    """A checkpoint, the reference model, and adapters over it."""

    folder: Path
    reference: Any
    adapters: list[AdapterVersion]
    nf4: bool


def make_tiny(folder: Path, architecture: str, *, nf4: bool) -> Tiny:
    make_tiny_model(folder / "base", architecture)  # type: ignore[arg-type]
    reference = load_reference(folder / "base", nf4=nf4)
    adapters = [
        make_adapter(folder, reference, f"a{i}", seed=i, **variant)
        for i, variant in enumerate(VARIANTS)
    ]
    return Tiny(folder / "base", reference, adapters, nf4)
