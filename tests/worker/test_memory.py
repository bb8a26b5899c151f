"""What a run needs at the least; what surely does not fit is refused, with what would."""

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from core.base_model import EMBEDDED
from core.errors import ServiceError
from core.settings import Settings
from core.training_config import JobConfig
from tests.worker.trainers import CPU
from worker.memory import check_memory, estimate_memory, free_memory
from worker.precision import Precision
from worker.resolve import resolve_config
from worker.training import linear_layers, load_base

MIB = 2**20


def resolved(base: Path = EMBEDDED, **training: Any) -> JobConfig:
    asked = JobConfig.model_validate({"training": {"gradient_checkpointing": False, **training}})
    return resolve_config(asked, base_folder=base, precision=CPU, num_rows=100)[0]


def budget(settings: Settings, mib: int) -> Settings:
    return settings.model_copy(update={"training_memory_mb": mib})


def test_base_is_counted_as_it_is(bases: dict[str, Path]) -> None:
    for name in ("phi3", "llama", "embedded"):
        model = load_base(bases[name], CPU)
        layers = {n: m for n, m in model.named_modules() if n in linear_layers(model)}
        four_bit = sum(m.in_features * m.out_features for m in layers.values()) // 2
        others = sum(
            p.numel() * p.element_size() for p in model.parameters() if p.dtype != torch.uint8
        )
        estimate = estimate_memory(resolved(bases[name]), bases[name], CPU, num_longest=64)
        assert estimate.base == pytest.approx(four_bit + others, rel=0.05)


def test_grows_with_what_is_asked() -> None:
    def total(num_longest: int = 512, **training: Any) -> int:
        config = resolved(**training)
        return estimate_memory(config, EMBEDDED, CPU, num_longest=num_longest).total

    assert total(per_device_train_batch_size=16) > total()
    assert total(gradient_checkpointing=True) < total()
    assert total(num_longest=40) < total(), "no row is as long as max_length"
    assert total(num_longest=40, packing=True) == total()
    half = Precision(torch.device("cpu"), torch.bfloat16)
    assert estimate_memory(resolved(), EMBEDDED, half, num_longest=512).total < total()


def test_what_fits_is_let_through(settings: Settings) -> None:
    check_memory(resolved(), EMBEDDED, CPU, settings, num_longest=512)


@pytest.mark.parametrize(
    ("training", "mib", "advice"),
    [
        (
            {"per_device_train_batch_size": 1024},
            2000,
            r"per_device_train_batch_size=\d+ may fit \(with gradient_accumulation_steps=\d+",
        ),
        (
            {"max_length": 4096, "per_device_train_batch_size": 2},
            200,
            "gradient_checkpointing=true",
        ),
        (
            {
                "max_length": 4096,
                "gradient_checkpointing": True,
                "per_device_train_batch_size": 64,
            },
            60,
            r"max_length=\d+ may fit|per_device_train_batch_size=\d+ may fit",
        ),
        ({}, 1, "this base model is too large for the device"),
    ],
)
def test_what_cannot_fit_is_refused(
    settings: Settings, training: dict[str, Any], mib: int, advice: str
) -> None:
    config = resolved(**training)
    with pytest.raises(ServiceError, match=advice) as caught:
        check_memory(config, EMBEDDED, CPU, budget(settings, mib), num_longest=4096)
    assert caught.value.code == "out_of_memory"
    assert f"{mib:,} MiB are free" in caught.value.message


def test_advice_keeps_the_rows_of_a_step(settings: Settings) -> None:
    config = resolved(per_device_train_batch_size=256, gradient_accumulation_steps=4)
    with pytest.raises(ServiceError) as caught:
        check_memory(config, EMBEDDED, CPU, budget(settings, 2000), num_longest=512)
    found = re.search(r"batch_size=(\d+) .*accumulation_steps=(\d+) ", caught.value.message)
    assert found
    batch_size, num_batches = map(int, found.groups())
    assert batch_size < 256
    assert batch_size * num_batches == pytest.approx(1024, abs=batch_size / 2)
    fitting = resolved(
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=num_batches
    )
    check_memory(fitting, EMBEDDED, CPU, budget(settings, 2000), num_longest=512)


def test_a_batch_that_is_to_be_found_is_not_refused(settings: Settings) -> None:
    config = resolved(per_device_train_batch_size=1024, auto_find_batch_size=True)
    check_memory(config, EMBEDDED, CPU, budget(settings, 2000), num_longest=512)


def test_budget(settings: Settings) -> None:
    assert free_memory(CPU, budget(settings, 10)) == 10 * MIB
    assert free_memory(CPU, settings) <= psutil.virtual_memory().total
