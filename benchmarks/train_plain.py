"""The recipe `yoda-phi3` as its write-up has it, a plain TRL script: nothing of this repository is in it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from core.datasets import Row


def plain_trainer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    num_epochs: float,
    device: torch.device,
    output_dir: str,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """With what a CPU can where `device` is one: another optimiser, float32."""
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    options: dict[str, Any] = {}
    if "quantization_config" not in json.loads((folder / "config.json").read_text()):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, **options
    )
    model = prepare_model_for_kbit_training(
        model, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        bias="none",
        lora_dropout=0.05,
        task_type="CAUSAL_LM",
        target_modules=["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
    )
    model = get_peft_model(model, lora)
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row.prompt}],
                "completion": [{"role": "assistant", "content": row.completion}],
            }
            for row in rows
        ]
    )
    config = SFTConfig(
        output_dir=output_dir,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        gradient_accumulation_steps=1,
        per_device_train_batch_size=16,
        auto_find_batch_size=True,
        max_length=64,
        packing=True,
        packing_strategy="wrapped",
        num_train_epochs=num_epochs,
        learning_rate=3e-4,
        optim="paged_adamw_8bit" if is_cuda else "adamw_torch",
        logging_steps=10,
        logging_first_step=True,
        report_to="none",
        bf16=is_cuda,
        use_cpu=not is_cuda,
        save_strategy="no",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=config,
        train_dataset=dataset,
        callbacks=callbacks,
    )
