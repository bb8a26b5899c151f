"""One fine-tuning run: the 4-bit base and a fresh LoRA (QLoRA, arXiv:2305.14314) through TRL's SFTTrainer.

Knows no Redis, no queue and no registry.
"""

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from datasets import disable_progress_bars
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from core.base_model import NF4_CONFIG
from core.errors import ServiceError
from core.settings import Settings
from core.target_modules import match_target_modules
from core.training_config import JobConfig, LoraSection
from worker.callbacks import diverged
from worker.dataset import TrainingData

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Where a run computes, and in which dtype its activations are. The LoRA weights are float32 everywhere."""

    device: torch.device
    dtype: torch.dtype


class CompactLossTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that projects only trained tokens onto the vocabulary, which TRL itself does on GPUs alone.

    The same loss; with a small model on a CPU the head over prompts and padding was half of a step.
    """

    def compute_loss(
        self,
        model: PeftModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if return_outputs:
            return super().compute_loss(model, inputs, True, num_items_in_batch)
        targets = inputs["labels"][:, 1:]  # [batch, length - 1]
        is_trained = targets != -100

        def keep_trained(_: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (args[0][:, :-1][is_trained],)  # [trained, hidden]

        features = {name: value for name, value in inputs.items() if name != "labels"}
        with model.get_output_embeddings().register_forward_pre_hook(keep_trained):
            logits = model(**features, use_cache=False).logits  # [trained, vocabulary]
        loss = torch.nn.functional.cross_entropy(
            logits.float(), targets[is_trained], reduction="sum"
        )
        num_tokens = is_trained.sum() if num_items_in_batch is None else num_items_in_batch
        return loss / torch.as_tensor(num_tokens).clamp(min=1)


@dataclass(frozen=True)
class TrainingResult:
    """`train_loss` is the mean over the run; first and final loss are those of the curve's ends."""

    num_steps: int
    num_tokens: int
    seconds: float
    train_loss: float
    first_loss: float
    final_loss: float
    num_trainable: int
    has_learnt: bool

    def metrics(self) -> dict[str, float]:
        """For the seal of what was trained."""
        return {
            "train_loss": round(self.train_loss, 4),
            "first_loss": round(self.first_loss, 4),
            "final_loss": round(self.final_loss, 4),
            "steps": self.num_steps,
            "tokens": self.num_tokens,
            "seconds": round(self.seconds, 1),
            "trainable_parameters": self.num_trainable,
        }


def choose_precision(settings: Settings) -> Precision:
    """Raises ServiceError `device_unavailable` if CUDA is demanded and there is none."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ServiceError(
            "DRAGOMAN_DEVICE=cuda, but this worker sees no CUDA device", code="device_unavailable"
        )
    is_cuda = settings.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if is_cuda else torch.device("cpu")
    if settings.compute_dtype != "auto":
        return Precision(device, _DTYPES[settings.compute_dtype])
    if not is_cuda:
        return Precision(device, torch.float32)
    return Precision(device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def load_base(folder: Path, precision: Precision) -> PreTrainedModel:
    """The base model in nf4: as the checkpoint has it, or quantised now."""
    disable_progress_bar()
    quantization: dict[str, Any] = {}
    if "quantization_config" not in json.loads((folder / "config.json").read_text()):
        nf4 = BitsAndBytesConfig(**NF4_CONFIG, bnb_4bit_compute_dtype=precision.dtype)
        quantization["quantization_config"] = nf4
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=precision.dtype,
        device_map={"": precision.device},
        local_files_only=True,
        **quantization,
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # A checkpoint that is 4-bit already brings its own, whatever `dtype` says.
            module.compute_dtype = precision.dtype
            # On processors with AVX512-BF16 bitsandbytes would repack the weights at the first forward outside
            # training; gradients through repacked weights are wrong, without a word.
            module.support_avx512bf16_for_cpu = False
    return model


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TrainingData,
    config: JobConfig,
    *,
    precision: Precision,
    output_dir: Path,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """Raises InvalidError `target_modules_invalid`."""
    lora = _lora_config(config.lora, _target_modules(model, config.lora.target_modules))
    disable_progress_bars()
    args = _training_arguments(config, precision, output_dir)
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=config.training.gradient_checkpointing,
        gradient_checkpointing_kwargs=args.activation_checkpointing_kwargs,
    )
    is_cpu = precision.device.type == "cpu"
    trainer = (CompactLossTrainer if is_cpu else SFTTrainer)(
        model=model,
        args=args,
        train_dataset=data.dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # SFTTrainer makes them bfloat16, whose 8 bits swallow most of AdamW's small updates.
            parameter.data = parameter.data.float()
    return trainer


def run_training(trainer: SFTTrainer) -> TrainingResult:
    """Trains to the end. Whatever a callback raises comes out; InvalidError `training_diverged`."""
    num_trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    logger.info("training %d parameters on %s", num_trainable, trainer.args.device)
    started_s = time.monotonic()
    output = trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not math.isfinite(output.training_loss) or not all_finite(trainer.model):
        raise diverged(output.global_step)
    return TrainingResult(
        num_steps=output.global_step,
        num_tokens=int(trainer.state.num_input_tokens_seen),
        seconds=time.monotonic() - started_s,
        train_loss=output.training_loss,
        first_loss=losses[0],
        final_loss=losses[-1],
        num_trainable=num_trainable,
        has_learnt=_has_fallen(losses),
    )


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the linears that a LoRA may sit on; the output head cannot, since TRL fuses it with the loss."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


def _target_modules(model: PreTrainedModel, asked: str | list[str]) -> list[str]:
    """What a job asked for, as names that PEFT matches by their endings."""
    names = linear_layers(model)
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    if isinstance(asked, str):  # "all-linear"
        matched = [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] in endings]
        return endings if set(matched) == set(names) else names
    # PEFT takes a list in which only some names exist, and trains those; a typing error would pass unseen.
    return match_target_modules(asked, names)[0]


def _lora_config(lora: LoraSection, target_modules: list[str]) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        bias="none",
        r=lora.r,
        lora_alpha=int(lora.lora_alpha) if float(lora.lora_alpha).is_integer() else lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=target_modules,
        use_rslora=lora.use_rslora,
    )


def _training_arguments(config: JobConfig, precision: Precision, output_dir: Path) -> SFTConfig:
    is_cuda = precision.device.type == "cuda"
    # The names of TrainingSection are SFTConfig's own, so every key that a job may name takes effect.
    asked: dict[str, Any] = config.training.model_dump()
    for name in (
        "bf16",
        "fp16",
        "early_stopping_patience",
        "dataset_num_proc",
        "eval_steps",
        "save_steps",
        "report_to",
    ):
        asked.pop(name)
    asked["activation_checkpointing"] = asked.pop("gradient_checkpointing")  # its name from now on
    if config.training.lr_scheduler_type == "polynomial":
        asked["lr_scheduler_kwargs"] = {"lr_end": 0.0}  # the default end is above a tiny start
    return SFTConfig(
        **asked,
        output_dir=str(output_dir),
        activation_checkpointing_kwargs={"use_reentrant": False},
        # Rows of like length share a batch: a third less padding on sentence pairs, no worse a translator.
        train_sampling_strategy="random" if config.training.packing else "group_by_length",
        bf16=is_cuda and precision.dtype == torch.bfloat16,
        fp16=is_cuda and precision.dtype == torch.float16,
        use_cpu=not is_cuda,
        dataloader_pin_memory=is_cuda,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen, not replaced
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _has_fallen(losses: list[float]) -> bool:
    """Whether a curve's last tenth lies below its beginning; of a short curve nothing can be said, so yes."""
    length = len(losses) // 10
    return length == 0 or sum(losses[-length:]) / length < losses[0]


def all_finite(model: PeftModel) -> bool:
    """Whether the trained weights are numbers."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
