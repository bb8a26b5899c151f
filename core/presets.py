"""Named starting points for a job's config: two published recipes, and our own for those who do not want to choose."""

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["yoda-phi3", "wenyan-llama", "fast", "quality"]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The QLoRA recipe for microsoft/Phi-3-mini-4k-instruct on dvgodoy/yoda_sentences.
    "yoda-phi3": {
        "quantization": {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "prepare_model_for_kbit_training": True,
        },
        "lora": {
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "bias": "none",
            "target_modules": ["qkv_proj", "gate_up_proj", "down_proj", "o_proj"],
        },
        "training": {
            "num_train_epochs": 10.0,
            "learning_rate": 3e-4,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "auto_find_batch_size": True,
            "gradient_checkpointing": True,
            "max_length": 64,
            "packing": True,
            "packing_strategy": "wrapped",
            "optim": "paged_adamw_8bit",
            "logging_steps": 10,
            "bf16": True,
        },
    },
    # The recipe for unsloth/Llama-3.2-1B-Instruct on ShareGPT conversations of classical and modern Chinese.
    "wenyan-llama": {
        "lora": {
            "r": 16,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": [
                *("q_proj", "k_proj", "v_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj"),
            ],
            "use_rslora": True,
            "init_lora_weights": "loftq",
        },
        "training": {
            "max_steps": 60,
            "learning_rate": 2e-4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": True,
            "activation_offloading": True,
            "max_length": 2048,
            "packing": False,
            "assistant_only_loss": True,
            "dataset_num_proc": 2,
            "optim": "adamw_8bit",
            "lr_scheduler_type": "linear",
            "warmup_steps": 5,
            "weight_decay": 0.01,
            "logging_steps": 1,
            "seed": 3407,
        },
    },
    # Found on the embedded base (docs/decisions.md); on a GPU worker.resolve makes the batches larger.
    "fast": {"training": {"num_train_epochs": 2.0, "per_device_train_batch_size": 4}},
    # The defaults, written out. What costs more (more epochs, a wider LoRA, dropout, early stops by held-out loss) was
    # worse on the embedded base: it fits the training rows better, and nothing else.
    "quality": {
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0},
        "training": {"num_train_epochs": 3.0, "per_device_train_batch_size": 8},
    },
}


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, a job's config, over the values of the preset that it names."""
    merged = dict(given)
    for section, values in PRESETS[given["preset"]].items():
        named = merged.get(section, {})
        # Anything but an object is left for validation to refuse.
        merged[section] = values | named if isinstance(named, dict) else named
    return merged
