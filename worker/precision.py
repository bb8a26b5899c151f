"""Where a run computes, and in which dtype."""

from dataclasses import dataclass

import torch
from bitsandbytes.functional import has_avx512bf16

from core.errors import ServiceError
from core.settings import Settings
from core.training_config import JobConfig, TrainingSection

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Where a run computes, and in which dtype its activations are. The LoRA weights are float32 everywhere."""

    device: torch.device
    dtype: torch.dtype


def choose_precision(settings: Settings, config: JobConfig | None = None) -> Precision:
    """What `config` asks for where the device can, else what `settings` say.

    Raises ServiceError `device_unavailable` if CUDA is demanded and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ServiceError(
            "DRAGOMAN_DEVICE=cuda, but this worker sees no CUDA device", code="device_unavailable"
        )
    is_cuda = settings.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if is_cuda else torch.device("cpu")
    if not is_cuda:
        auto = settings.compute_dtype == "auto"
        return Precision(device, torch.float32 if auto else DTYPES[settings.compute_dtype])
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    training = TrainingSection() if config is None else config.training
    if training.bf16:
        return Precision(device, half)
    if training.fp16:
        return Precision(device, torch.float16)
    if training.bf16 is False and training.fp16 is not None:
        return Precision(device, torch.float32)
    if settings.compute_dtype != "auto":
        return Precision(device, DTYPES[settings.compute_dtype])
    return Precision(device, torch.float16 if training.bf16 is False else half)


def choose_compute_dtype(precision: Precision, asked: str = "auto") -> torch.dtype:
    """In which dtype 4-bit layers multiply: the one `asked` for ("auto": none) if the device can.

    Auto on a CPU is bfloat16 where the processor multiplies it (AVX512-BF16), as the server does there: a step of the
    embedded base takes half the time, and nf4's 16 values are no finer.
    """
    if precision.device.type == "cpu":
        fast = torch.bfloat16 if has_avx512bf16() else torch.float32
        return fast if asked in ("auto", "bfloat16") else torch.float32
    if asked == "auto":
        return precision.dtype
    if asked == "bfloat16" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return DTYPES[asked]


def dtype_name(dtype: torch.dtype) -> str:
    """As configs call it."""
    return str(dtype).removeprefix("torch.")
