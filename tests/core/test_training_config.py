"""What a job may ask for, and how it is told that it may not."""

from typing import Any

import pytest
from pydantic import ValidationError

from core.training_config import JobConfig, TrainingSection


def test_defaults_are_complete() -> None:
    config = JobConfig.model_validate({})
    assert config == JobConfig()
    assert JobConfig.model_validate(config.model_dump(mode="json")) == config


def test_partial_sections_keep_other_defaults() -> None:
    config = JobConfig.model_validate({"lora": {"r": 8}, "training": {"max_steps": 5}})
    assert (config.lora.r, config.lora.lora_alpha) == (8, 32)
    assert (config.training.max_steps, config.training.num_train_epochs) == (5, 3)


@pytest.mark.parametrize(
    ("config", "location"),
    [
        ({"colour": "red"}, ("colour",)),
        ({"lora": {"rank": 8}}, ("lora", "rank")),
        ({"lora": {"r": 0}}, ("lora", "r")),
        ({"lora": {"r": 257}}, ("lora", "r")),
        ({"lora": {"r": "eight"}}, ("lora", "r")),
        ({"lora": {"lora_alpha": 0}}, ("lora", "lora_alpha")),
        ({"lora": {"lora_alpha": float("inf")}}, ("lora", "lora_alpha")),
        ({"lora": {"lora_dropout": 1}}, ("lora", "lora_dropout")),
        ({"lora": {"target_modules": []}}, ("lora", "target_modules")),
        ({"lora": {"target_modules": [""]}}, ("lora", "target_modules")),
        ({"lora": {"target_modules": "q_proj"}}, ("lora", "target_modules")),
        ({"lora": {"init_lora_weights": "orthogonal", "r": 3}}, ("lora",)),
        ({"lora": {"init_lora_weights": "pissa"}}, ("lora", "init_lora_weights")),
        ({"lora": {"bias": "all"}}, ("lora", "bias")),
        ({"quantization": {"bnb_4bit_quant_type": "fp4"}}, ("quantization", "bnb_4bit_quant_type")),
        ({"quantization": {"load_in_8bit": True}}, ("quantization", "load_in_8bit")),
        ({"training": {"bf16": True, "fp16": True}}, ("training",)),
        ({"training": {"packing_strategy": "best"}}, ("training", "packing_strategy")),
        ({"training": {"eval_steps": 0}}, ("training", "eval_steps")),
        ({"training": {"save_steps": 0}}, ("training", "save_steps")),
        ({"training": {"early_stopping_patience": 0}}, ("training", "early_stopping_patience")),
        ({"training": {"dataset_num_proc": 65}}, ("training", "dataset_num_proc")),
        ({"training": {"report_to": ["comet"]}}, ("training", "report_to")),
        ({"evaluation": {"holdout": 1.5}}, ("evaluation", "holdout")),
        ({"evaluation": {"metric": "ter"}}, ("evaluation", "metric")),
        ({"evaluation": {"promote": "maybe"}}, ("evaluation", "promote")),
        ({"training": {"learning_rate": float("nan")}}, ("training", "learning_rate")),
        ({"training": {"learning_rate": 0}}, ("training", "learning_rate")),
        ({"training": {"learning_rate": -1}}, ("training", "learning_rate")),
        ({"training": {"num_train_epochs": 0}}, ("training", "num_train_epochs")),
        ({"training": {"num_train_epochs": float("nan")}}, ("training", "num_train_epochs")),
        ({"training": {"max_steps": 0}}, ("training", "max_steps")),
        ({"training": {"max_steps": -2}}, ("training", "max_steps")),
        ({"training": {"per_device_train_batch_size": 0}}, ("training", "per_device_train_batch")),
        ({"training": {"max_length": 7}}, ("training", "max_length")),
        ({"training": {"optim": "lion"}}, ("training", "optim")),
        ({"training": {"lr_scheduler_type": "sawtooth"}}, ("training", "lr_scheduler_type")),
        ({"training": {"seed": 2**31}}, ("training", "seed")),
        ({"training": {"output_dir": "/etc"}}, ("training", "output_dir")),
        ({"source": "english please"}, ("source",)),
        ({"target": "../x"}, ("target",)),
        ({"prompt": {"template": "no text"}}, ("prompt", "template")),
        ({"prompt": {"template": "{text}", "style": 1}}, ("prompt", "style")),
        ({"prompt": {"template": "{text}\0"}}, ("prompt", "template")),
        ({"prompt": {"system": "\0"}}, ("prompt", "system")),
        ({"description": "x" * 2001}, ("description",)),
        ({"description": "\0"}, ("description",)),
        ({"preset": {}}, ("preset",)),
        ({"preset": ["fast"]}, ("preset",)),
    ],
)
def test_refused(config: dict[str, Any], location: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        JobConfig.model_validate(config)
    places = [".".join(str(part) for part in e["loc"]) for e in caught.value.errors()]
    assert any(place.startswith(".".join(location)) for place in places), places


@pytest.mark.parametrize("code", ["und", "en", "lzh", "zh-Hans", "en-x-yoda"])
def test_language_tags(code: str) -> None:
    assert JobConfig(source=code, target=code).target == code


@pytest.mark.parametrize(
    ("rows", "accumulated", "batch_size", "expected"),
    [
        (16, 1, 8, 2),
        (16, 1, 1, 16),
        (2, 4, 1, 8),
        (10, 1, 2, 5),
        (9, 1, 4, 2),  # 8 rows are nearer to 9 than 12
        (7, 1, 3, 2),
        (16, 1, 16, 1),
        (4, 2, 64, 1),
        (1024, 4, 1, 1024),  # and no more than a job may ask for
    ],
)
def test_a_step_keeps_its_rows_in_smaller_batches(
    rows: int, accumulated: int, batch_size: int, expected: int
) -> None:
    training = TrainingSection(
        per_device_train_batch_size=rows, gradient_accumulation_steps=accumulated, seed=7
    ).in_batches_of(batch_size)
    assert training.per_device_train_batch_size == batch_size
    assert training.gradient_accumulation_steps == expected
    assert training.seed == 7
    assert TrainingSection.model_validate(training.model_dump()) == training
