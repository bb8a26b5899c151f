"""Loads a base model: any Hugging Face causal LM, quantised to nf4 unless its checkpoint is 4-bit already."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from app.model.base import ATTENTION, BaseModel, free_bytes
from core.base_model import NF4_CONFIG
from core.errors import ServiceError


def load_base_model(
    folder: Path,
    *,
    device: str = "auto",
    compute_dtype: str = "auto",
    base_weights: str = "packed",
) -> BaseModel:
    """Loads any Hugging Face causal LM from `folder`, quantised to nf4 unless its checkpoint is 4-bit already.

    The arguments are the settings of the same names. Raises ServiceError `base_model_unusable` where it cannot be loaded or served.
    """
    disable_progress_bar()
    place = _choose_device(device)
    dtype = _choose_dtype(compute_dtype, place)
    try:
        options: dict[str, Any] = {}
        if getattr(AutoConfig.from_pretrained(folder), "quantization_config", None) is None:
            options["quantization_config"] = BitsAndBytesConfig(
                **NF4_CONFIG, bnb_4bit_compute_dtype=dtype
            )
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": place},
            attn_implementation=ATTENTION,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ServiceError(
            f"the base model in {folder} cannot be loaded: {error}", code="base_model_unusable"
        ) from error
    model.requires_grad_(False).eval()
    _cast(model, dtype)
    if base_weights == "unpacked" or (
        base_weights == "auto" and _should_unpack(model, place, dtype)
    ):
        # The nf4 values are bfloat16 to begin with; bitsandbytes' own kernel multiplies so too where it can.
        on_bfloat16 = place.type == "cpu" and has_avx512bf16()
        _unpack(model, torch.bfloat16 if on_bfloat16 else dtype)
    return BaseModel(model, tokenizer, place)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """A 4-bit checkpoint keeps the dtypes it was saved with, whatever from_pretrained was asked for."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _should_unpack(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the copy is small beside what is free.

    bitsandbytes unpacks at every call on a CPU: 0.63 ms against 0.06 for 384 -> 1152 at one token; on a GPU it reads
    less, but for more than a few tokens is far from the memory's speed.
    """
    linears = [m for m in model.modules() if isinstance(m, Linear4bit)]
    num_bytes = sum(dtype.itemsize * m.in_features * m.out_features for m in linears)
    return bool(num_bytes < 0.25 * free_bytes(device))


class _UnpackedLinear(nn.Linear):
    """A linear layer whose weights may be narrower than its activations."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def _unpack(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces 4-bit layers by plain ones that hold what bitsandbytes would multiply with."""
    for name, packed in list(model.named_modules()):
        if isinstance(packed, Linear4bit):
            weight = dequantize_4bit(packed.weight.data, packed.weight.quant_state).to(dtype)
            linear = _UnpackedLinear(
                packed.in_features, packed.out_features, bias=False, device="meta"
            )
            linear.weight = nn.Parameter(weight, requires_grad=False)
            if packed.bias is not None:
                linear.bias = nn.Parameter(packed.bias.to(dtype), requires_grad=False)
            parent_name, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child, linear)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ServiceError(
            "DRAGOMAN_DEVICE=cuda, but torch sees no CUDA device", code="device_unavailable"
        )
    return torch.device(device, 0) if device == "cuda" else torch.device(device)


def _choose_dtype(compute_dtype: str, device: torch.device) -> torch.dtype:
    if compute_dtype != "auto":
        return {
            "float32": torch.float32,
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
        }[compute_dtype]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
