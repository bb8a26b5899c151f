"""Whether a run fits into its device's memory, told before hours are spent on it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import ServiceError
from core.memory import free_host_bytes
from core.settings import Settings
from core.training_config import JobConfig
from worker.precision import Precision

_MIB = 2**20
# float32 weight, gradient, and AdamW's two moments.
_BYTES_PER_TRAINED = 16
# What a step keeps for its backward pass, in tensors of [tokens, hidden] a layer. Well below what was measured, 34 to 63
# without checkpoints and 2.8 with (docs/decisions.md): nothing that might run is refused.
_TENSORS_PER_LAYER = 10
_TENSORS_PER_CHECKPOINTED_LAYER = 1


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run needs at the least, at full `max_length`."""

    base: int
    lora: int
    activations: int

    @property
    def total(self) -> int:
        return self.base + self.lora + self.activations


def estimate_memory(
    config: JobConfig, base_folder: Path, precision: Precision, *, num_longest: int
) -> MemoryEstimate:
    """Of a resolved `config` on the base model in `base_folder`; `num_longest` tokens has the longest row.

    A lower bound: a run that is refused by it would surely have failed.
    """
    base = json.loads((base_folder / "config.json").read_text())
    hidden, layers = int(base["hidden_size"]), int(base["num_hidden_layers"])
    num_linear = _num_linear(base)
    others = 2 * int(base["vocab_size"]) * hidden
    if base.get("tie_word_embeddings"):
        others //= 2
    training = config.training
    per_layer = (
        _TENSORS_PER_CHECKPOINTED_LAYER if training.gradient_checkpointing else _TENSORS_PER_LAYER
    )
    length = training.max_length if training.packing else min(num_longest, training.max_length)
    num_tokens = training.per_device_train_batch_size * length
    width = precision.dtype.itemsize
    # r * (in + out) of each adapted layer; the sum of all linears' sides is at least this.
    num_lora = config.lora.r * 2 * hidden * layers
    return MemoryEstimate(
        base=num_linear // 2 + others * width,
        lora=num_lora * _BYTES_PER_TRAINED,
        activations=num_tokens * hidden * layers * per_layer * width,
    )


def check_memory(
    config: JobConfig,
    base_folder: Path,
    precision: Precision,
    settings: Settings,
    *,
    num_longest: int,
) -> None:
    """Raises ServiceError `out_of_memory`, with what would fit, if the run surely needs more than there is."""
    if config.training.auto_find_batch_size:
        config = config.model_copy(deep=True)
        config.training.per_device_train_batch_size = 1  # it will be found
    free = free_memory(precision, settings)
    need = estimate_memory(config, base_folder, precision, num_longest=num_longest)
    if need.total <= free:
        return
    raise ServiceError(
        f"the run needs at least {need.total // _MIB:,} MiB on {precision.device.type} (base model "
        f"{need.base // _MIB:,}, LoRA and optimiser {need.lora // _MIB:,}, activations "
        f"{need.activations // _MIB:,}), and {free // _MIB:,} MiB are free: "
        + _what_fits(config, need, free),
        code="out_of_memory",
    )


def free_memory(precision: Precision, settings: Settings) -> int:
    """Bytes that a run may take: what is free, and no more than DRAGOMAN_TRAINING_MEMORY_MB."""
    if precision.device.type == "cuda":
        free = int(torch.cuda.mem_get_info(precision.device)[0])
    else:
        free = free_host_bytes()
    budget = settings.training_memory_mb * _MIB
    return min(free, budget) if budget else free


def limit_memory(precision: Precision, settings: Settings) -> None:
    """Makes PyTorch keep to the budget on a GPU: beyond it a run is out of memory, and the server beside it is not."""
    if precision.device.type == "cuda" and settings.training_memory_mb:
        total = torch.cuda.mem_get_info(precision.device)[1]
        share = min(1.0, settings.training_memory_mb * _MIB / total)
        torch.cuda.set_per_process_memory_fraction(share, precision.device)


def _what_fits(config: JobConfig, need: MemoryEstimate, free: int) -> str:
    training = config.training
    room = free - need.base - need.lora
    per_row = need.activations // training.per_device_train_batch_size
    if room >= per_row:
        batch = room // per_row
        return (
            f"per_device_train_batch_size={batch} may fit (with gradient_accumulation_steps="
            f"{training.in_batches_of(batch).gradient_accumulation_steps} for the same step)"
        )
    if room <= 0:
        return "this base model is too large for the device, whatever the config"
    if not training.gradient_checkpointing:
        return "gradient_checkpointing=true, or a smaller max_length, may fit"
    length = max(8, training.max_length * room // per_row)
    return f"per_device_train_batch_size=1 and max_length={length} may fit"


def _num_linear(base: dict[str, Any]) -> int:
    """Weights of the layers that are 4-bit."""
    hidden, inner = int(base["hidden_size"]), int(base.get("intermediate_size", 0))
    heads = int(base["num_attention_heads"])
    head_size = int(base.get("head_dim") or hidden // heads)
    kv_heads = int(base.get("num_key_value_heads") or heads)
    attention = hidden * head_size * (2 * heads + 2 * kv_heads)
    return int(base["num_hidden_layers"]) * (attention + 3 * hidden * inner)
