"""Reads an adapter's PEFT folder: plain LoRA that fits the base model, ready for the bank, or every reason why not."""

import math
import re
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from app.lora.bank import LoraBank
from app.lora.safetensors_file import read_tensors
from app.lora.weights import LoraLayout, LoraWeights, SiteShape
from core.adapter_version import CONFIG_FILE, WEIGHTS_FILE
from core.errors import InvalidError, NotFoundError

# Settings of peft.LoraConfig under which an adapter is more than "add B A x": value -> how to say it.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA",
    "lora_bias": "biases in LoRA layers",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "fan_in_fan_out": "transposed weights",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
}
# Initialisations that leave the base model as it is. PiSSA, OLoRA, CorDA and LoftQ rewrite it.
_KEPT_BASE = (True, False, "gaussian", "eva", "orthogonal")


def _is_variant(key: str) -> bool:
    return key.endswith("_config") and key != "eva_config"  # EVA only chooses where A begins


def _pattern_of_sites(pattern: str) -> re.Pattern[str]:
    """As peft matches a key of alpha_pattern."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _compiled(pattern: str) -> str:
    try:
        _pattern_of_sites(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


class _PeftConfig(BaseModel):
    """What decides how adapter_config.json's weights are to be read."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    lora_alpha: float = Field(allow_inf_nan=False)
    alpha_pattern: dict[Annotated[str, AfterValidator(_compiled)], float] | None = None
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: Any = True

    def faults(self) -> list[str]:
        """What makes it more than plain LoRA over the untouched base model."""
        faults = []
        if self.peft_type != "LORA":
            faults.append(f"peft_type {self.peft_type!r}, expected 'LORA'")
        extra = self.model_extra or {}
        faults += [
            f"{key}: {what} are not served" for key, what in _REFUSED.items() if extra.get(key)
        ]
        # Variants come with every release of peft, each with a switch or a configuration of its own.
        faults += [
            f"{key}: a variant of LoRA that is not served"
            for key, value in extra.items()
            if value and key not in _REFUSED and (key.startswith("use_") or _is_variant(key))
        ]
        if self.bias != "none":
            faults.append(f"bias {self.bias!r}, expected 'none'")
        if self.init_lora_weights not in _KEPT_BASE:
            faults.append(
                f"init_lora_weights {self.init_lora_weights!r} rewrites the base model; "
                "convert the adapter first"
            )
        return faults

    def scaling(self, site: str, rank: int) -> float:
        """As peft computes it: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
        alpha = self.lora_alpha
        for pattern, value in (self.alpha_pattern or {}).items():
            if _pattern_of_sites(pattern).match(site):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_lora(folder: Path, bank: LoraBank) -> LoraWeights:
    """Reads a PEFT folder and checks that it is plain LoRA that fits the base model.

    Raises InvalidError `adapter_unusable`, listing everything that does not fit, or NotFoundError
    `adapter_not_found` where the folder has gone.
    """
    try:
        config = _PeftConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
        tensors = read_tensors(folder / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        if not folder.exists():
            raise NotFoundError(
                "the adapter was removed before it was read", code="adapter_not_found"
            ) from error
        raise unusable([f"its files cannot be read: {error}"]) from error
    faults = config.faults()
    if faults:
        raise unusable(faults)
    sites: list[SiteShape] = []
    every_a, every_b = [], []
    for name in sorted({_site_name(key) for key in tensors}):
        site = bank.sites.get(name)
        a = tensors.pop(f"base_model.model.{name}.lora_A.weight", None)
        b = tensors.pop(f"base_model.model.{name}.lora_B.weight", None)
        if site is None or a is None or b is None:
            faults.append(f"{name}: not a LoRA pair on a linear layer of this base model")
            continue
        rank = len(a) if a.ndim else 0
        shape = SiteShape(name, rank, site.base.in_features, site.base.out_features)
        expected = (rank, shape.in_features), (shape.out_features, rank)
        if not rank or (tuple(a.shape), tuple(b.shape)) != expected:
            faults.append(
                f"{name}: shapes {tuple(a.shape)} and {tuple(b.shape)}, expected {expected}"
            )
            continue
        sites.append(shape)
        every_a.append(a)
        every_b.append(b)
    faults += [f"{key}: unexpected tensor" for key in tensors]
    layout = LoraLayout(tuple(sites), bank.a_dtype, bank.dtype)
    weights = LoraWeights(layout, torch.empty(layout.num_bytes, dtype=torch.uint8))
    if sites:
        _convert(every_a, every_b, [config.scaling(s.name, s.rank) for s in sites], weights)
        faults += _not_finite(weights)
    elif not faults:
        faults.append("it holds no tensors")
    if faults:
        raise unusable(faults)
    if weights.rank > bank.width:
        raise unusable([f"rank {weights.rank} is over the bank's {bank.width} columns"])
    return weights


def _convert(
    every_a: list[Tensor], every_b: list[Tensor], scales: list[float], weights: LoraWeights
) -> None:
    """Few calls for all matrices: each call leaves the interpreter to another thread and waits to have it back."""
    torch._foreach_copy_([a for a, _ in weights.sites.values()], every_a)
    scaled = [b if b.dtype is torch.float32 else b.float() for b in every_b]
    torch._foreach_mul_(scaled, scales)
    torch._foreach_copy_([b.T for _, b in weights.sites.values()], scaled)


def _not_finite(weights: LoraWeights) -> list[str]:
    """As the bank holds them: what is finite in float32 may not be in float16, or after scaling."""

    def is_finite(part: Tensor) -> bool:
        return all(math.isfinite(bound) for bound in torch.aminmax(part))

    if all(is_finite(part) for part in weights.layout.parts(weights.data)):
        return []
    return [
        f"{name}: weights that are not finite in {weights.layout.b_dtype}"
        for name, pair in weights.sites.items()
        if not all(is_finite(matrix) for matrix in pair)
    ]


def _site_name(key: str) -> str:
    return re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", key)


def unusable(faults: list[str]) -> InvalidError:
    """`adapter_unusable`, with 20 faults at most and 500 characters of each: they quote files of any size."""
    listed = "; ".join(fault[:500] for fault in faults[:20]) + (
        f"; and {len(faults) - 20} more" if faults[20:] else ""
    )
    return InvalidError(f"the adapter cannot be served: {listed}", code="adapter_unusable")
