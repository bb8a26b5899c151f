"""One fine-tuning run: the 4-bit base and a fresh LoRA (QLoRA, arXiv:2305.14314) through TRL's SFTTrainer.

Knows no Redis, no queue and no registry.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils.logging import disable_progress_bar
from trl import SFTTrainer, pack_dataset

from core.target_modules import match_target_modules
from core.training_config import JobConfig, LoraSection, QuantizationSection, TrainingSection
from worker import packed_attention
from worker.arguments import training_arguments
from worker.callbacks import diverged
from worker.dataset import TrainingData
from worker.integrations import reporting_callbacks
from worker.lora_init import init_loftq, init_orthogonal
from worker.precision import Precision as Precision
from worker.precision import choose_compute_dtype
from worker.precision import choose_precision as choose_precision
from worker.trainer import AdapterTrainer, CleanStart
from worker.unpacked import unpack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """`train_loss` is the mean over the run; first and final loss are those of the curve's ends.

    `batch_size` is what memory allowed: less than was asked for only with `auto_find_batch_size`.
    """

    num_steps: int
    num_tokens: int
    seconds: float
    train_loss: float
    first_loss: float
    final_loss: float
    num_trainable: int
    batch_size: int
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


def load_base(
    folder: Path,
    precision: Precision,
    quantization: QuantizationSection = QuantizationSection(),  # noqa: B008
) -> PreTrainedModel:
    """The base model in nf4, as the checkpoint has it, or quantised now; all else in `precision`'s dtype."""
    disable_progress_bar()
    compute_dtype = choose_compute_dtype(precision, quantization.bnb_4bit_compute_dtype)
    options: dict[str, Any] = {}
    if "quantization_config" not in json.loads((folder / "config.json").read_text()):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=precision.dtype,
        device_map={"": precision.device},
        local_files_only=True,
        **options,
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # A checkpoint that is 4-bit already brings its own, whatever it is loaded with.
            module.compute_dtype = compute_dtype
            module.compute_type_is_set = True
            # On processors with AVX512-BF16 bitsandbytes would repack the weights at the first forward outside
            # training; gradients through repacked weights are wrong, without a word.
            module.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():
        parameter.requires_grad = False
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(precision.dtype)
    if precision.device.type == "cpu":
        unpack(model, compute_dtype)
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
    base_folder: Path,
    eval_data: TrainingData | None = None,
    find_checkpoint: Callable[[], Path | None] = lambda: None,
) -> SFTTrainer:
    """The trainer of a resolved `config`. Checkpoints go to `output_dir`, reports to the folder that it is in.

    `base_folder` is where `model` was loaded from; `find_checkpoint` gives what a run goes on from that has run out of
    memory, the newest whole checkpoint. Raises InvalidError `target_modules_invalid`, ServiceError
    `integration_missing` or `loftq_impossible`.
    """
    training = config.training
    lora = _lora_config(config.lora, _target_modules(model, config.lora.target_modules))
    disable_progress_bars()
    reporters, report_to = reporting_callbacks(training.report_to, output_dir.parent)
    args = training_arguments(
        training,
        precision,
        output_dir,
        report_to=report_to,
        has_eval_data=eval_data is not None,
    )
    if config.quantization.prepare_model_for_kbit_training or precision.dtype == torch.float16:
        # Always in float16, whose range the sums of a deep model can leave.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    trainer = AdapterTrainer(
        model=model,
        args=args,
        train_dataset=_packed(data, training),
        eval_dataset=None if eval_data is None else eval_data.dataset,
        processing_class=tokenizer,
        callbacks=[*callbacks, *reporters],
        peft_config=lora,
        training=training,
        find_checkpoint=find_checkpoint,
    )
    trainer.remove_callback(PrinterCallback)
    if training.auto_find_batch_size:
        trainer.add_callback(CleanStart())
    if args.load_best_model_at_end:
        trainer.add_callback(EarlyStoppingCallback(training.early_stopping_patience))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # SFTTrainer makes them bfloat16, whose 8 bits swallow most of AdamW's small updates.
            parameter.data = parameter.data.float()
    if config.lora.init_lora_weights == "orthogonal":
        init_orthogonal(trainer.model)
    elif config.lora.init_lora_weights == "loftq":
        init_loftq(trainer.model, base_folder)
    return trainer


def run_training(trainer: SFTTrainer, checkpoint: Path | None = None) -> TrainingResult:
    """Trains to the end, from `checkpoint` on if there is one.

    Whatever a callback raises comes out; InvalidError `training_diverged`.
    """
    num_trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    logger.info("training %d parameters on %s", num_trainable, trainer.args.device)
    started_s = time.monotonic()
    with training_attention(trainer):
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
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
        batch_size=trainer.args.per_device_train_batch_size,
        has_learnt=has_fallen(losses),
    )


def training_attention(trainer: SFTTrainer) -> AbstractContextManager[None]:
    """Within, batches of the trainer are attended to without masks, if its model's attention is plain."""
    base = trainer.model.get_base_model()
    if packed_attention.is_possible(base, trainer.args.max_length):
        return packed_attention.used_by(base)
    return nullcontext()


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
    init = lora.init_lora_weights
    return LoraConfig(
        task_type="CAUSAL_LM",
        bias=lora.bias,
        r=lora.r,
        lora_alpha=int(lora.lora_alpha) if float(lora.lora_alpha).is_integer() else lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=target_modules,
        use_rslora=lora.use_rslora,
        init_lora_weights=True if init in ("orthogonal", "loftq") else init,  # see build_trainer
    )


def _packed(data: TrainingData, training: TrainingSection) -> Dataset:
    if not training.packing:
        return data.dataset
    columns = data.dataset.select_columns(["input_ids", "labels"])
    return pack_dataset(
        columns, training.max_length, training.packing_strategy, {"keep_in_memory": True}
    )


def has_fallen(losses: Sequence[float]) -> bool:
    """Whether a curve's last tenth lies below its first point; of a short curve nothing can be said, so yes.

    Not below its first tenth: the first point alone comes before any learning, and a ruinous rate has raised the second.
    """
    length = len(losses) // 10
    return length == 0 or sum(losses[-length:]) / length < losses[0]


def all_finite(model: PeftModel) -> bool:
    """Whether the trained weights are numbers."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
