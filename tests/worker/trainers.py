"""Trainers on tiny bases, for the tests of training."""

import csv
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from core.base_model import EMBEDDED
from core.datasets import Row
from core.prompt import Prompt, PromptRenderer, seal_prompt
from core.training_config import JobConfig, TrainingSection
from tests.tiny_models import Architecture, make_tiny_model
from tests.worker.conftest import ROWS
from worker.dataset import TrainingData, build_training_data
from worker.precision import Precision
from worker.resolve import resolve_config
from worker.training import TrainingResult, build_trainer, load_base

CPU = Precision(torch.device("cpu"), torch.float32)
# Losses are compared to the last digits; on processors with AVX512-BF16 layers multiply in bfloat16 otherwise.
EXACT = {"bnb_4bit_compute_dtype": "float32"}
# Of a run, for those who publish it.
RESULT = TrainingResult(
    num_steps=7,
    num_tokens=700,
    seconds=1.0,
    train_loss=2.0,
    first_loss=3.0,
    final_loss=1.0,
    num_trainable=64,
    batch_size=4,
    has_learnt=True,
)


def make_bases(root: Path) -> dict[str, Path]:
    """Two architectures to quantise at load, one that is 4-bit on disk, and the embedded base."""
    architectures: tuple[Architecture, ...] = ("phi3", "llama")
    folders = {name: make_tiny_model(root / name, name) for name in architectures}
    nf4 = make_tiny_model(root / "nf4", "phi3", quantized=True, dtype=torch.bfloat16)
    return folders | {"phi3-nf4": nf4, "embedded": EMBEDDED}


def renderer_of(base: Path) -> PromptRenderer:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return PromptRenderer(tokenizer, seal_prompt(Prompt(), tokenizer))


def tokenise(base: Path, training: TrainingSection, rows: list[Row] = ROWS) -> TrainingData:
    return build_training_data(rows, renderer_of(base), training)


def make_trainer(
    base: Path,
    attempt: Path,
    config: dict[str, Any],
    *,
    rows: list[Row] = ROWS,
    eval_rows: list[Row] | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> SFTTrainer:
    """As a job makes it: resolved, loaded, built. Exact, unless `config` has a `quantization`."""
    asked = JobConfig.model_validate({"quantization": EXACT} | config)
    resolved, _ = resolve_config(asked, base_folder=base, precision=CPU, num_rows=len(rows))
    training = resolved.training
    return build_trainer(
        load_base(base, CPU, resolved.quantization),
        AutoTokenizer.from_pretrained(base),
        tokenise(base, training, rows),
        resolved,
        precision=CPU,
        output_dir=attempt / "checkpoints",
        callbacks=callbacks or [],
        base_folder=base,
        eval_data=tokenise(base, training, eval_rows) if eval_rows else None,
    )


class OutOfMemory(TrainerCallback):  # type: ignore[misc]
    """For batches of more than `max_rows`, once `after_step` steps are done; keeps what each beginning began with."""

    def __init__(self, max_rows: int, *, after_step: int = 2) -> None:
        self._max_rows = max_rows
        self._after_step = after_step
        self._begins = False
        self.began_at: list[int] = []
        self.first_weights: list[list[torch.Tensor]] = []
        self.num_moments: list[int] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begins = True

    def on_step_begin(
        self, args: Any, state: Any, _: Any, *, model: Any, optimizer: Any, **__: Any
    ) -> None:
        if self._begins:
            trained = [p.detach().clone() for p in model.parameters() if p.requires_grad]
            self.first_weights.append(trained)
            self.num_moments.append(len(optimizer.state))
            self.began_at.append(state.global_step)
            self._begins = False
        is_short = state.global_step >= self._after_step
        if is_short and args.per_device_train_batch_size > self._max_rows:
            exhaust_memory()


def exhaust_memory() -> None:
    """Asks PyTorch's allocator for more than there can be."""
    torch.empty(2**60, dtype=torch.uint8)


def first_batch(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return next(iter(trainer.get_train_dataloader()))


def num_trainable(trainer: SFTTrainer) -> int:
    return sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def lora_layers(trainer: SFTTrainer) -> dict[str, LoraLayer]:
    base = trainer.model.get_base_model()
    return {name: m for name, m in base.named_modules() if isinstance(m, LoraLayer)}


def losses_of(trainer: SFTTrainer, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def read_pairs(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as handle:
        return [Row(**row) for row in csv.DictReader(handle)]
