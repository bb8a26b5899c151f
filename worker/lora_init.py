"""First weights of a LoRA on an nf4 base where PEFT's own function for them cannot be used."""

from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.tuners.lora import Linear4bit
from safetensors import safe_open

from core.errors import ServiceError

_ADAPTER = "default"
_SVD_ITERATIONS = 8


def init_orthogonal(model: PeftModel) -> None:
    """As PEFT's: A's and B's inner sides are orthogonal, so that B A is zero and neither of them is.

    PEFT gives them the dtype of the base's weight, which is uint8 here.
    """
    for layer in _lora_layers(model).values():
        rank = layer.r[_ADAPTER]
        q = torch.linalg.qr(torch.randn(rank, rank))[0]
        half = rank // 2
        a = (torch.randn(layer.in_features, half) @ q[0::2]).T / 10  # [rank, in]
        b = torch.randn(half, layer.out_features).T @ q[1::2] / 10  # [out, rank]
        _set_weights(layer, a, b)


def init_loftq(model: PeftModel, folder: Path) -> None:
    """LoftQ (Li et al. 2023, arXiv:2310.08659), one step: B A is the best fit of that rank to what nf4 lost.

    As peft.replace_lora_weights_loftq, which needs a CUDA device, and leaves out that a LoRA's product is scaled.
    `folder` holds the base's unquantised safetensors. Raises ServiceError `loftq_impossible`.
    """
    files = _tensor_files(folder)
    for name, layer in _lora_layers(model).items():
        key = f"{name}.weight"
        if key not in files:
            raise ServiceError(
                f"init_lora_weights='loftq' needs the full-precision weight {key!r}, which is not in "
                "the base model's safetensors; 'gaussian', 'orthogonal' and true need none",
                code="loftq_impossible",
            )
        packed = layer.get_base_layer().weight
        with safe_open(files[key], framework="pt") as file:
            exact = file.get_tensor(key).to(packed.device, torch.float32)
        lost = exact - dequantize_4bit(packed.data, packed.quant_state).float()  # [out, in]
        rank = layer.r[_ADAPTER]
        u, s, v = torch.svd_lowrank(
            lost, q=min(2 * rank, *lost.shape), niter=_SVD_ITERATIONS
        )  # more columns than asked for: the last ones of a randomised SVD are the worst
        root = s[:rank].sqrt()
        _set_weights(layer, (v[:, :rank] * root).T, u[:, :rank] * root / layer.scaling[_ADAPTER])


def _lora_layers(model: PeftModel) -> dict[str, Linear4bit]:
    """By their names in the base model."""
    base = model.get_base_model()
    return {name: m for name, m in base.named_modules() if isinstance(m, Linear4bit)}


def _set_weights(layer: Linear4bit, a: torch.Tensor, b: torch.Tensor) -> None:
    for parameter, value in (
        (layer.lora_A[_ADAPTER].weight, a),
        (layer.lora_B[_ADAPTER].weight, b),
    ):
        parameter.data.copy_(value)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor -> the file that holds it."""
    files: dict[str, Path] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files
