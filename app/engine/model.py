"""The base model: loads it in 4 bits and runs one step over a mix of sequences. Alone imports transformers.

All tokens of a step lie in one row, [1, tokens]: nothing is padded, and the modelling code of transformers runs as it is.
Only attention needs to know where one sequence ends; it is registered below and finds the step in its arguments.
"""

import logging
from collections.abc import Sequence as Ids
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils.logging import disable_progress_bar

from app.engine.kv_cache import KVCache
from app.engine.lora_bank import LoraBank
from core.base_model import NF4_CONFIG
from core.errors import ServiceError

logger = logging.getLogger(__name__)

_ATTENTION = "dragoman"


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's tokens in a step: `length` of them at `start`; the first is number `position` of its sequence."""

    start: int
    length: int
    position: int
    region_start: int

    @property
    def num_keys(self) -> int:
        return self.position + self.length


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass is given. All lists are [tokens], `last_rows` [sequences that get a new token]."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    spans: list[Span]
    last_rows: list[int]


@dataclass(frozen=True, slots=True)
class _AttentionStep:
    """Where the tokens of a step go in the KV cache, and what each sequence attends to."""

    cache: KVCache
    write_index: Tensor  # [tokens]
    alone: list[Span]  # attended to one by one
    together: "_DecodeBatch | None"  # single tokens, attended to in one padded call


@dataclass(frozen=True, slots=True)
class _DecodeBatch:
    rows: Tensor  # [sequences], indices into the step's tokens
    keys: Tensor  # [sequences, longest], indices into the KV cache
    mask: Tensor  # [sequences, 1, 1, longest], True = attend


def _attend(
    module: nn.Module,
    query: Tensor,  # [1, heads, tokens, head_dim]
    key: Tensor,  # [1, kv_heads, tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: _AttentionStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each sequence over its own keys and values; -> [1, tokens, heads, head_dim].

    One call a sequence: nobody's NaN can reach another, and no padding is computed.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    keys, values = step.cache.write(
        layer, step.write_index, key[0].transpose(0, 1), value[0].transpose(0, 1)
    )
    grouped = query.shape[1] != key.shape[1]
    output = torch.empty_like(query.transpose(1, 2))
    for span in step.alone:
        first = 0
        if sliding_window is not None:
            first = max(0, span.position + 1 - sliding_window)
        region = slice(span.region_start + first, span.region_start + span.num_keys)
        end = span.start + span.length
        output[:, span.start : end] = functional.scaled_dot_product_attention(
            query[:, :, span.start : end],
            keys[region].transpose(0, 1)[None],
            values[region].transpose(0, 1)[None],
            attn_mask=_causal_mask(span, first, sliding_window, query.device),
            is_causal=span.length > 1 and span.position == 0 and sliding_window is None,
            scale=scaling,
            enable_gqa=grouped,
        ).transpose(1, 2)
    if step.together is not None:
        batch = step.together
        mask = batch.mask
        if sliding_window is not None:
            place = torch.arange(mask.shape[-1], device=mask.device)
            mask = mask & (place >= mask.sum(-1, keepdim=True) - sliding_window)
        attended = functional.scaled_dot_product_attention(
            query[0, :, batch.rows].transpose(0, 1)[:, :, None],  # [sequences, heads, 1, head_dim]
            keys[batch.keys].transpose(1, 2),  # [sequences, kv_heads, longest, head_dim]
            values[batch.keys].transpose(1, 2),
            attn_mask=mask,
            scale=scaling,
            enable_gqa=grouped,
        )
        output[0, batch.rows] = attended[:, :, 0]
    return output, None


def _causal_mask(
    span: Span, first: int, sliding_window: int | None, device: torch.device
) -> Tensor | None:
    """[length, keys], True = attend; None where every key may be seen or plain causality says it all."""
    if span.length == 1 or (span.position == 0 and sliding_window is None):
        return None
    keys = torch.arange(first, span.num_keys, device=device)
    queries = torch.arange(span.position, span.num_keys, device=device)[:, None]
    mask = keys <= queries
    if sliding_window is not None:
        mask &= queries - keys < sliding_window
    return mask


AttentionInterface.register(_ATTENTION, _attend)


class BaseModel:
    """The frozen 4-bit causal LM, its tokenizer, and the bank that adds adapters to its linear layers."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.device = device
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        # On a GPU single tokens attend together, since launches cost; on a CPU alone, since padding costs.
        self.batch_decode = device.type != "cpu"
        self._model = model
        self._config = model.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        """The model's width, in features."""
        return int(self._config.hidden_size)

    @property
    def max_context(self) -> int:
        """Most tokens of prompt plus output.

        Some models scale their rotary embedding by the longest sequence of a step; below the original length one
        long request cannot change the others'.
        """
        rope = getattr(self._config, "rope_parameters", None) or {}
        longest = int(self._config.max_position_embeddings)
        if rope.get("rope_type") not in ("longrope", "dynamic"):
            return longest
        original = rope.get("original_max_position_embeddings") or getattr(
            self._config, "original_max_position_embeddings", None
        )
        return min(longest, int(original or longest))

    @property
    def eos_token_ids(self) -> list[int]:
        eos = self._model.generation_config.eos_token_id
        return [] if eos is None else eos if isinstance(eos, list) else [eos]

    @property
    def num_bytes(self) -> int:
        """Memory of weights and buffers."""
        return int(self._model.get_memory_footprint())

    def device_usage(self) -> dict[str, float]:
        """The GPU's memory in bytes and, where the extra `gpu` is installed, its utilisation 0..1; {} on a CPU."""
        if self.device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(self.device)
        usage = {"memory_free_bytes": float(free), "memory_total_bytes": float(total)}
        with suppress(ModuleNotFoundError):  # torch asks nvidia-ml-py
            usage["utilization_ratio"] = torch.cuda.utilization(self.device) / 100
        return usage

    def create_bank(self, *, width: int, num_slots: int) -> LoraBank:
        """Makes every linear layer but the output embeddings a site for adapters; once."""
        bank = LoraBank(width=width, num_slots=num_slots, dtype=self.dtype, device=self.device)
        head = self._model.get_output_embeddings()
        linears = [(n, m) for n, m in self._model.named_modules() if isinstance(m, nn.Linear)]
        for name, linear in linears:
            if linear is not head:
                parent_name, _, child = name.rpartition(".")
                setattr(self._model.get_submodule(parent_name), child, bank.wrap(name, linear))
        return bank

    def create_cache(self, num_tokens: int) -> KVCache:
        """A KV cache of `num_tokens`; 0: as many as a share of free memory holds."""
        config = self._config
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
        token_bytes *= self.dtype.itemsize
        if not num_tokens:
            share = 0.4 if self.device.type == "cuda" else 0.1
            num_tokens = min(
                int(share * _free_bytes(self.device)) // token_bytes, 16 * self.max_context
            )
        return KVCache(
            num_layers=config.num_hidden_layers,
            num_tokens=num_tokens,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(self, step: Step, cache: KVCache, bank: LoraBank) -> Tensor:
        """Runs one step; -> logits [sequences in last_rows, vocabulary] in float32."""
        bank.select(step.slots)
        hidden_step = _AttentionStep(
            cache=cache,
            write_index=self._indices(
                [i for s in step.spans for i in _region_indices(s)],
            ),
            **self._group(step.spans),
        )
        output = self._model(
            input_ids=self._indices(step.token_ids)[None],
            position_ids=self._indices(step.positions)[None],
            use_cache=False,
            logits_to_keep=self._indices(step.last_rows),
            step=hidden_step,
        )
        logits: Tensor = output.logits[0].float()
        return logits

    def _group(self, spans: list[Span]) -> dict[str, Any]:
        single = [s for s in spans if s.length == 1] if self.batch_decode else []
        if not single:
            return {"alone": spans, "together": None}
        longest = max(s.num_keys for s in single)
        place = torch.arange(longest, device=self.device)
        num_keys = self._indices([s.num_keys for s in single])[:, None]
        starts = self._indices([s.region_start for s in single])[:, None]
        valid = place < num_keys
        batch = _DecodeBatch(
            rows=self._indices([s.start for s in single]),
            keys=torch.where(valid, starts + place, starts),  # padding reads the first key, unseen
            mask=valid[:, None, None],
        )
        return {"alone": [s for s in spans if s.length > 1], "together": batch}

    def _indices(self, values: Ids[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _region_indices(span: Span) -> range:
    return range(span.region_start + span.position, span.region_start + span.num_keys)


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
            attn_implementation=_ATTENTION,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ServiceError(
            f"the base model in {folder} cannot be loaded: {error}", code="base_model_unusable"
        ) from error
    model.requires_grad_(False).eval()
    _cast(model, dtype)
    if base_weights == "unpacked" or (base_weights == "auto" and _should_unpack(model, place)):
        _unpack(model, dtype)
    return BaseModel(model, tokenizer, place)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """A 4-bit checkpoint keeps the dtypes it was saved with, whatever from_pretrained was asked for."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _should_unpack(model: nn.Module, device: torch.device) -> bool:
    """bitsandbytes' portable CPU path unpacks at every call: 0.63 ms against 0.06 for 384 -> 1152 at one token."""
    if device.type != "cpu":
        return False
    linears = [m for m in model.modules() if isinstance(m, Linear4bit)]
    unpacked_bytes = sum(4 * m.in_features * m.out_features for m in linears)
    return bool(unpacked_bytes < 0.25 * _free_bytes(device))


class _UnpackedLinear(nn.Linear):
    """A linear layer whose weights may be narrower than its activations."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def _unpack(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces 4-bit layers by plain ones that hold what bitsandbytes would multiply with.

    In bfloat16 where the processor multiplies it, as bitsandbytes' own kernel does there; elsewhere in `dtype`.
    """
    if has_avx512bf16():
        dtype = torch.bfloat16
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


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # With what the page cache would give up: free pages alone are few on any machine that has run for a while.
    return int(psutil.virtual_memory().available)


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
