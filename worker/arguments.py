"""A job's `training` section -> SFTConfig: the names are SFTConfig's own, so every key takes effect."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from core.training_config import TrainingSection
from worker.precision import Precision

_EVAL_SHARE = 0.1  # of a run, between two evaluations
# What is not SFTConfig's, or is translated below.
_OURS = {
    "bf16",
    "fp16",
    "early_stopping_patience",
    "eval_steps",
    "save_steps",
    "report_to",
    "gradient_checkpointing",
    "assistant_only_loss",  # is in the labels already (see worker.dataset)
}
# Its name from transformers 5.2x on, where the old one is deprecated.
_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in {field.name for field in fields(SFTConfig)}
    else "gradient_checkpointing"
)


def training_arguments(
    training: TrainingSection,
    precision: Precision,
    output_dir: Path,
    *,
    report_to: list[str],
    has_eval_data: bool,
) -> SFTConfig:
    """For the tokenised data of worker.dataset."""
    is_cuda = precision.device.type == "cuda"
    asked: dict[str, Any] = training.model_dump(exclude=_OURS)
    asked[_CHECKPOINTING] = bool(training.gradient_checkpointing)
    asked[f"{_CHECKPOINTING}_kwargs"] = {"use_reentrant": False}
    if training.lr_scheduler_type == "polynomial":
        asked["lr_scheduler_kwargs"] = {"lr_end": 0.0}  # the default end is above a tiny start
    return SFTConfig(
        **asked,
        **_evaluation_arguments(training, has_eval_data),
        output_dir=str(output_dir),
        dataset_kwargs={"skip_prepare_dataset": True},  # it is tokenised, labelled and packed
        # Rows of like length share a batch: a third less padding on sentence pairs, no worse a translator.
        train_sampling_strategy="random" if training.packing else "group_by_length",
        per_device_eval_batch_size=training.per_device_train_batch_size,
        bf16=is_cuda and precision.dtype == torch.bfloat16,
        fp16=is_cuda and precision.dtype == torch.float16,
        use_cpu=not is_cuda,
        dataloader_pin_memory=is_cuda,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen, not replaced
        include_num_input_tokens_seen="non_padding",
        restore_callback_states_from_checkpoint=True,  # the patience of early stopping
        report_to=report_to or "none",
        disable_tqdm=True,
    )


def _evaluation_arguments(training: TrainingSection, has_eval_data: bool) -> dict[str, Any]:
    """When to evaluate and when to save. Early stopping goes back to the checkpoint of its best evaluation."""
    eval_steps = training.eval_steps or _EVAL_SHARE
    stops_early = has_eval_data and training.early_stopping_patience is not None
    save_steps = eval_steps if stops_early else training.save_steps
    arguments: dict[str, Any] = {"save_strategy": "steps" if save_steps else "no"}
    if save_steps:
        arguments["save_steps"] = save_steps
    if has_eval_data:
        arguments |= {"eval_strategy": "steps", "eval_steps": eval_steps}
    if stops_early:
        arguments |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
    return arguments
