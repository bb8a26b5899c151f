"""What cannot be done here is replaced by what can, and each time the job is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import InvalidError, ServiceError
from core.training_config import JobConfig
from tests.worker.trainers import CPU
from worker.precision import Precision, choose_compute_dtype, dtype_name
from worker.resolve import resolve_config

GPU = Precision(torch.device("cuda", 0), torch.bfloat16)
OLD_GPU = Precision(torch.device("cuda", 0), torch.float16)


def resolve(
    base: Path, precision: Precision = CPU, num_rows: int = 100, **config: Any
) -> tuple[JobConfig, list[str]]:
    asked = JobConfig.model_validate(config)
    before = asked.model_copy(deep=True)
    resolved = resolve_config(asked, base_folder=base, precision=precision, num_rows=num_rows)
    assert asked == before
    return resolved


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the GPU that tests pretend to have multiplies bfloat16."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("base", ["phi3", "llama", "phi3-nf4", "embedded"])
def test_defaults_need_no_warning_and_leave_nothing_open(bases: dict[str, Path], base: str) -> None:
    config, warnings = resolve(bases[base])
    assert warnings == []
    training = config.training
    assert (training.bf16, training.fp16) == (False, False)
    assert training.gradient_checkpointing is False
    assert training.assistant_only_loss is True
    assert training.learning_rate is not None
    assert config.lora.target_modules == "all-linear"
    assert config.quantization.bnb_4bit_compute_dtype == dtype_name(choose_compute_dtype(CPU))
    assert config.evaluation.holdout == 10
    assert resolve(bases[base], **config.model_dump())[0] == config


@pytest.mark.parametrize(
    ("section", "key", "asked", "used"),
    [
        ("training", "optim", "paged_adamw_8bit", "adamw_8bit"),
        ("training", "optim", "paged_adamw_32bit", "adamw_torch"),
        ("training", "bf16", True, False),
        ("training", "fp16", True, False),
        ("training", "activation_offloading", True, False),
        ("training", "max_length", 4096, 512),
        ("quantization", "bnb_4bit_compute_dtype", "float16", "float32"),
    ],
)
def test_what_a_cpu_cannot_do(
    bases: dict[str, Path], section: str, key: str, asked: Any, used: Any
) -> None:
    config, warnings = resolve(bases["phi3"], **{section: {key: asked}})
    assert getattr(getattr(config, section), key) == used
    (warning,) = warnings
    words = [str(v).lower() if isinstance(v, bool) else str(v) for v in (asked, used)]
    assert warning.startswith(f"{section}.{key}: {words[0]} was asked for, {words[1]} is used: ")


def test_8_bit_moments_need_no_gpu(bases: dict[str, Path]) -> None:
    config, warnings = resolve(bases["phi3"], training={"optim": "adamw_8bit"})
    assert (config.training.optim, warnings) == ("adamw_8bit", [])


@pytest.mark.parametrize("asked", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize(("machine", "used"), [("x86_64", "adamw_torch"), ("arm64", "adamw_8bit")])
def test_8_bit_moments_need_avx2_on_intel_and_amd(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch, asked: str, machine: str, used: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    config, warnings = resolve(bases["phi3"], training={"optim": asked})
    assert config.training.optim == used
    assert len(warnings) == (asked != used)
    assert any("AVX2" in warning for warning in warnings) == (used == "adamw_torch")


def test_processes_are_no_more_than_cores(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.resolve._num_cores", lambda: 2)
    config, warnings = resolve(bases["phi3"], training={"dataset_num_proc": 2})
    assert (config.training.dataset_num_proc, warnings) == (2, [])
    config, (warning,) = resolve(bases["phi3"], training={"dataset_num_proc": 3})
    assert config.training.dataset_num_proc == 2
    assert "3 was asked for, 2 is used: this machine has 2" in warning


def test_on_a_gpu_nothing_is_replaced(bases: dict[str, Path], has_bf16: bool) -> None:
    asked = {
        "training": {
            "optim": "paged_adamw_8bit",
            "activation_offloading": True,
            "bf16": has_bf16,
            "fp16": not has_bf16,
        },
        "quantization": {"bnb_4bit_compute_dtype": "float32"},
    }
    config, warnings = resolve(bases["phi3"], GPU if has_bf16 else OLD_GPU, **asked)
    assert warnings == []
    for section, values in asked.items():
        assert values.items() <= getattr(config, section).model_dump().items()
    assert config.training.gradient_checkpointing is True


def test_gpu_without_bfloat16(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    config, warnings = resolve(
        bases["phi3"],
        OLD_GPU,
        training={"bf16": True},
        quantization={"bnb_4bit_compute_dtype": "bfloat16"},
    )
    assert (config.training.bf16, config.training.fp16) == (False, True)
    assert config.quantization.bnb_4bit_compute_dtype == "float16"
    assert [w.partition(":")[0] for w in warnings] == [
        "training.bf16",
        "quantization.bnb_4bit_compute_dtype",
    ]


def test_base_that_is_4_bit_on_disk(bases: dict[str, Path]) -> None:
    asked = {
        "lora": {"init_lora_weights": "loftq"},
        "quantization": {"bnb_4bit_use_double_quant": False},
    }
    config, warnings = resolve(bases["phi3-nf4"], **asked)
    assert config.lora.init_lora_weights is True
    assert config.quantization.bnb_4bit_use_double_quant is True
    assert [w.partition(":")[0] for w in warnings] == [
        "lora.init_lora_weights",
        "quantization.bnb_4bit_use_double_quant",
    ]
    config, warnings = resolve(bases["phi3"], **asked)
    assert config.lora.init_lora_weights == "loftq"
    assert config.quantization.bnb_4bit_use_double_quant is False
    assert warnings == []


def test_target_modules_in_the_names_of_the_base(bases: dict[str, Path]) -> None:
    config, warnings = resolve(bases["llama"], lora={"target_modules": ["qkv_proj", "o_proj"]})
    assert config.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert len(warnings) == 1
    config, warnings = resolve(bases["phi3"], lora={"target_modules": ["gate_proj", "up_proj"]})
    assert config.lora.target_modules == ["gate_up_proj"]
    assert len(warnings) == 2
    with pytest.raises(InvalidError, match="'lm_head'"):
        resolve(bases["phi3"], lora={"target_modules": ["lm_head"]})


def test_without_held_out_rows(bases: dict[str, Path]) -> None:
    config, warnings = resolve(
        bases["phi3"],
        evaluation={"holdout": 0},
        training={"eval_steps": 5, "early_stopping_patience": 2},
    )
    assert (config.training.eval_steps, config.training.early_stopping_patience) == (None, None)
    assert [w.partition(" is used")[0] for w in warnings] == [
        "training.eval_steps: 5 was asked for, off",
        "training.early_stopping_patience: 2 was asked for, off",
    ]


def test_a_constant_rate_has_no_warm_up(bases: dict[str, Path]) -> None:
    asked = {"lr_scheduler_type": "constant", "warmup_steps": 5}
    config, (warning,) = resolve(bases["phi3"], training=asked)
    assert config.training.warmup_steps == 0
    assert warning.startswith("training.warmup_steps: 5 was asked for, 0 is used: the schedule")
    assert resolve(bases["phi3"], training=asked | {"warmup_steps": 0})[1] == []
    with_warmup = asked | {"lr_scheduler_type": "constant_with_warmup"}
    assert resolve(bases["phi3"], training=with_warmup)[1] == []


def test_early_stops_save_what_they_evaluate(bases: dict[str, Path]) -> None:
    config, (warning,) = resolve(
        bases["phi3"],
        training={"eval_steps": 5, "save_steps": 7, "early_stopping_patience": 2},
    )
    assert config.training.save_steps == 5
    assert warning.startswith("training.save_steps: 7 was asked for, 5 is used")


def test_checkpointing_where_memory_asks_for_it(bases: dict[str, Path], tmp_path: Path) -> None:
    shutil.copyfile(bases["phi3"] / "config.json", tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"hidden_size": 16_384, "intermediate_size": 65_536, "num_hidden_layers": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    large = {"per_device_train_batch_size": 1024}
    assert resolve(tmp_path, training=large)[0].training.gradient_checkpointing is True
    asked = large | {"gradient_checkpointing": False}
    assert resolve(tmp_path, training=asked)[0].training.gradient_checkpointing is False


def test_integration_that_is_not_installed(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.integrations.find_spec", lambda name: None)
    with pytest.raises(ServiceError, match="'mlflow', which is not installed"):
        resolve(bases["phi3"], training={"report_to": ["mlflow"]})


@pytest.mark.parametrize("preset", ["yoda-phi3", "wenyan-llama"])
@pytest.mark.parametrize("base", ["phi3", "llama", "embedded"])
def test_recipes_on_a_cpu_warn_of_every_difference(
    bases: dict[str, Path], base: str, preset: str
) -> None:
    asked = JobConfig.model_validate({"preset": preset}).model_dump()
    config, warnings = resolve(bases[base], preset=preset)
    for section in ("lora", "quantization", "training"):
        for key, value in getattr(config, section).model_dump().items():
            wanted = asked[section][key]
            if wanted not in (None, "auto", value):
                assert any(w.startswith(f"{section}.{key}: ") for w in warnings), key


def test_fast_packs_on_a_gpu(bases: dict[str, Path]) -> None:
    asked = {"preset": "fast", "training": {"max_length": 128, "num_train_epochs": 3}}
    on_cpu, warnings = resolve(bases["phi3"], **asked)
    assert not on_cpu.training.packing
    assert warnings == []
    sizes = []
    for num_rows in (10, 1000, 100_000):
        config, warnings = resolve(bases["phi3"], GPU, num_rows, **asked)
        assert config.training.packing
        assert [w.partition(":")[0] for w in warnings] == [
            "training.packing",
            "training.per_device_train_batch_size",
        ]
        sizes.append(config.training.per_device_train_batch_size)
        tokens = config.training.per_device_train_batch_size * 128
        growth = max(tokens / 300, 1) ** 0.5
        assert config.training.learning_rate == pytest.approx(
            on_cpu.training.learning_rate * growth, rel=0.05
        )
    assert sizes == [1, 15, 32]  # 4096 tokens at most


def test_fast_raises_the_rate_that_the_server_has_settled(bases: dict[str, Path]) -> None:
    """A job's record holds its config as the server settled it."""
    asked = JobConfig.model_validate({"preset": "fast", "training": {"max_length": 128}})
    settled = asked.settled(num_rows=100_000, hidden_size=64)
    of_both = [
        resolve_config(c, base_folder=bases["phi3"], precision=GPU, num_rows=100_000)[0]
        for c in (asked, settled)
    ]
    assert of_both[0].training == of_both[1].training
    assert settled.training.learning_rate
    assert of_both[1].training.learning_rate > 3 * settled.training.learning_rate


@pytest.mark.parametrize(
    "named", [{"per_device_train_batch_size": 16}, {"packing": True}, {"learning_rate": 1e-4}]
)
def test_fast_leaves_what_the_job_names(bases: dict[str, Path], named: dict[str, Any]) -> None:
    config, _ = resolve(bases["phi3"], GPU, preset="fast", training=named)
    assert named.items() <= config.training.model_dump().items()
