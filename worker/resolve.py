"""What a job asked for -> what this device and this base model do; each difference is a warning, none is silent."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core.memory import free_host_bytes
from core.presets import PRESETS
from core.target_modules import match_target_modules
from core.training_config import JobConfig, default_learning_rate
from worker.integrations import check_installed
from worker.precision import Precision, choose_compute_dtype, dtype_name
from worker.training import linear_layers

# bitsandbytes' pages are CUDA's; its 8-bit moments are not.
_UNPAGED = {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch"}
# The preset `fast` on a GPU: what a run of it should have in steps, and a step at most in tokens. Fewer tokens leave a
# large model waiting for its kernels to be launched, fewer steps leave it untaught.
_FAST_STEPS = 60
_FAST_TOKENS = 4096
_TOKENS_PER_ROW = 40  # a sentence pair in its chat template, about
# Of such a batch as the default learning rate was found with.
_TOKENS_OF_RATE = 300
# Of free memory; the rest is for weights, gradients and whoever else is on this machine.
_ACTIVATION_SHARE = 0.5


def resolve_config(
    config: JobConfig, *, base_folder: Path, precision: Precision, num_rows: int
) -> tuple[JobConfig, list[str]]:
    """`config` settled, with the nearest equivalent of what cannot be done here, and a warning for each.

    `num_rows` is the dataset's. Raises InvalidError `target_modules_invalid`, ServiceError `integration_missing`.
    """
    base = json.loads((base_folder / "config.json").read_text())
    settled = config.settled(num_rows=num_rows, hidden_size=int(base["hidden_size"]))
    resolution = _Resolution(settled)
    check_installed(settled.training.report_to)
    _fit_base(resolution, base_folder, base)
    _fit_device(resolution, precision)
    if config.preset == "fast" and precision.device.type == "cuda":
        # The server has settled the config already, and nobody can tell the default from a rate that equals it.
        default = default_learning_rate(int(base["hidden_size"]))
        is_rate_free = config.training.learning_rate in (None, default)
        _pack_for_gpu(resolution, num_rows, is_rate_free=is_rate_free)
    _fit_schedule(resolution)
    _fit_evaluation(resolution)
    _choose_checkpointing(resolution, base, precision)
    settled.training.assistant_only_loss = settled.training.trains_all_answers
    return settled, resolution.warnings


class _Resolution:
    """A config being changed, and why."""

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.warnings: list[str] = []

    def use(self, key: str, value: Any, reason: str) -> None:
        """Sets `key` ("section.name") to `value`; says so if something else was asked for."""
        section_name, _, name = key.partition(".")
        section = getattr(self.config, section_name)
        asked = getattr(section, name)
        if asked == value:
            return
        setattr(section, name, value)
        if asked is not None and asked != "auto":  # else the job left the choice to us
            self.warnings.append(
                f"{key}: {_shown(asked)} was asked for, {_shown(value)} is used: {reason}"
            )


def _shown(value: Any) -> str:
    if value is None:
        return "off"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fit_base(resolution: _Resolution, folder: Path, base: dict[str, Any]) -> None:
    config = resolution.config
    if isinstance(config.lora.target_modules, list):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        names, warnings = match_target_modules(config.lora.target_modules, linear_layers(model))
        config.lora.target_modules = names
        resolution.warnings += warnings
    context = int(base.get("max_position_embeddings", sys.maxsize))
    if config.training.max_length > context:
        reason = f"the base model reads no more than {context} tokens"
        resolution.use("training.max_length", context, reason)
    quantization = base.get("quantization_config")
    if quantization is None:
        return
    if config.lora.init_lora_weights == "loftq":
        reason = "this base model is 4-bit on disk, without the weights that LoftQ compares with"
        resolution.use("lora.init_lora_weights", True, reason)
    resolution.use(
        "quantization.bnb_4bit_use_double_quant",
        bool(quantization.get("bnb_4bit_use_double_quant", False)),
        "this base model was quantised so when it was saved",
    )


def _fit_device(resolution: _Resolution, precision: Precision) -> None:
    config = resolution.config
    computes = f"this device trains in {dtype_name(precision.dtype)}"
    for key, of_key in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if getattr(config.training, key) and precision.dtype != of_key:
            resolution.use(f"training.{key}", False, computes)
        setattr(config.training, key, precision.dtype == of_key)
    compute_dtype = choose_compute_dtype(precision, config.quantization.bnb_4bit_compute_dtype)
    resolution.use(
        "quantization.bnb_4bit_compute_dtype",
        dtype_name(compute_dtype),
        f"this device cannot multiply in it, or not faster than in {dtype_name(compute_dtype)}",
    )
    if precision.device.type == "cpu":
        optim = _UNPAGED.get(config.training.optim, config.training.optim)
        reason = "paged optimisers need a GPU"
        if optim == "adamw_8bit" and not _has_avx2():
            optim, reason = "adamw_torch", "8-bit optimisers need a GPU, or a processor with AVX2"
        resolution.use("training.optim", optim, reason)
        if config.training.activation_offloading:
            reason = "on a CPU there is nowhere to offload to"
            resolution.use("training.activation_offloading", False, reason)
    num_cores = _num_cores()
    if config.training.dataset_num_proc > num_cores:
        reason = f"this machine has {num_cores} processor cores"
        resolution.use("training.dataset_num_proc", num_cores, reason)


def _pack_for_gpu(resolution: _Resolution, num_rows: int, *, is_rate_free: bool) -> None:
    """Batches of many tokens and no padding, and the rate that they want; unless the job has a say in either."""
    training = resolution.config.training
    preset = PRESETS["fast"]["training"]
    batch_size = training.per_device_train_batch_size
    if training.packing or batch_size != preset["per_device_train_batch_size"]:
        return
    num_tokens = num_rows * training.num_train_epochs * _TOKENS_PER_ROW
    step_tokens = min(num_tokens / _FAST_STEPS, _FAST_TOKENS)
    num_blocks = max(1, int(step_tokens / training.max_length))
    reason = "on a GPU the preset fast packs rows into batches of many tokens"
    resolution.use("training.packing", True, reason)
    resolution.use("training.per_device_train_batch_size", num_blocks, reason)
    if is_rate_free and training.learning_rate is not None:
        # AdamW's steps are as noisy as the square root of a batch is small (Malladi et al. 2022, arXiv:2205.10287).
        growth = max(1.0, num_blocks * training.max_length / _TOKENS_OF_RATE) ** 0.5
        training.learning_rate = float(f"{training.learning_rate * growth:.2g}")


def _fit_schedule(resolution: _Resolution) -> None:
    if resolution.config.training.lr_scheduler_type == "constant":
        reason = "the schedule 'constant' has no warm-up; 'constant_with_warmup' has"
        resolution.use("training.warmup_steps", 0, reason)


def _fit_evaluation(resolution: _Resolution) -> None:
    training = resolution.config.training
    if resolution.config.evaluation.holdout == 0:
        reason = "evaluation.holdout is 0, so there are no rows to evaluate on"
        resolution.use("training.eval_steps", None, reason)
        resolution.use("training.early_stopping_patience", None, reason)
    if training.early_stopping_patience is not None and training.save_steps is not None:
        reason = "early stopping goes back to the checkpoint of its best evaluation"
        resolution.use("training.save_steps", training.eval_steps, reason)


def _choose_checkpointing(
    resolution: _Resolution, base: dict[str, Any], precision: Precision
) -> None:
    training = resolution.config.training
    if training.gradient_checkpointing is not None:
        return
    training.gradient_checkpointing = precision.device.type != "cpu" or (
        _activation_bytes(resolution.config, base) > _ACTIVATION_SHARE * free_host_bytes()
    )


def _activation_bytes(config: JobConfig, base: dict[str, Any]) -> int:
    """About what a step keeps for its backward pass without checkpointing, at full length and in float32."""
    hidden, inner = int(base["hidden_size"]), int(base.get("intermediate_size", 0))
    num_tokens = config.training.per_device_train_batch_size * config.training.max_length
    return 4 * num_tokens * int(base["num_hidden_layers"]) * (20 * hidden + 8 * inner)


def _has_avx2() -> bool:
    """Without it bitsandbytes' 8-bit kernels are an illegal instruction; other architectures have their own."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
