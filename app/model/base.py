"""The frozen base model: what is known of it, its sites for adapters, its key/value store, and its own modelling code.

All tokens of a step lie in one row, [1, tokens]: nothing is padded, and the modelling code of transformers runs as it is.
Only attention needs to know where one sequence ends; it is registered below and finds the step in its arguments.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from app.lora.bank import LoraBank
from app.model.kv_cache import KVCache
from app.model.operations import Attention, Batch, Operations
from core.errors import ServiceError
from core.memory import free_host_bytes

ATTENTION = "dragoman"


class BaseModel:
    """A causal LM in 4 bits, its tokenizer, and the sites at which adapters join it."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
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
        eos = self.model.generation_config.eos_token_id
        return [] if eos is None else eos if isinstance(eos, list) else [eos]

    @property
    def num_bytes(self) -> int:
        """Memory of weights and buffers."""
        return int(self.model.get_memory_footprint())

    def device_usage(self) -> dict[str, float]:
        """The GPU's memory in bytes and, where the extra `gpu` is installed, its utilisation 0..1; {} on a CPU."""
        if self.device.type != "cuda":
            return {}
        try:
            free, total = torch.cuda.mem_get_info(self.device)
        except RuntimeError:  # see check_device
            return {}
        usage = {"memory_free_bytes": float(free), "memory_total_bytes": float(total)}
        with suppress(ModuleNotFoundError):  # torch asks nvidia-ml-py
            usage["utilization_ratio"] = torch.cuda.utilization(self.device) / 100
        return usage

    def check_device(self) -> None:
        """Raises RuntimeError where the device computes nothing any more: most CUDA errors last until the process ends."""
        with suppress(torch.OutOfMemoryError):  # that one passes
            torch.ones(1, device=self.device).item()  # which waits for the device

    def create_bank(self, *, width: int, num_slots: int) -> LoraBank:
        """Makes every linear layer but the output embeddings a site for adapters; once.

        The bank has the dtype of unpacked weights, so that both can be multiplied at once.
        """
        head = self.model.get_output_embeddings()
        linears = [
            (n, m)
            for n, m in self.model.named_modules()
            if isinstance(m, nn.Linear) and m is not head
        ]
        dtypes = {m.weight.dtype for _, m in linears if m.weight.is_floating_point()}
        dtype = dtypes.pop() if len(dtypes) == 1 else self.dtype
        bank = LoraBank(width=width, num_slots=num_slots, dtype=dtype, device=self.device)
        for name, linear in linears:
            parent_name, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent_name), child, bank.wrap(name, linear))
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
                int(share * free_bytes(self.device)) // token_bytes, 16 * self.max_context
            )
        return KVCache(
            num_layers=config.num_hidden_layers,
            num_tokens=num_tokens,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(
        self, batch: Batch, cache: KVCache, operations: Operations
    ) -> tuple[Tensor, dict[int, Attention]]:
        """The modelling code's own pass; -> logits [batch.last_rows, vocabulary], and how each layer attends."""
        step = _AttentionStep(batch, cache, operations)
        output = self.model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.last_rows,
            step=step,
        )
        return output.logits[0], step.seen


@dataclass(slots=True)
class _AttentionStep:
    """What the modelling code hands through to `_attend`, and what it says of each layer there."""

    batch: Batch
    cache: KVCache
    operations: Operations
    seen: dict[int, Attention] = field(default_factory=dict)


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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """-> [1, tokens, heads, head_dim]. Raises ServiceError `base_model_unsupported`, at the first step of all."""
    if softcap is not None or s_aux is not None:
        what = f"softcap={softcap}" if softcap is not None else "sinks"
        raise ServiceError(
            f"the base model's attention has {what}, which is not served; take one with plain scaled "
            "dot-product attention, with or without a sliding window",
            code="base_model_unsupported",
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = Attention(scaling, sliding_window)
    step.seen[layer] = asked
    store = step.cache.write(
        layer, step.batch.places, key[0].transpose(0, 1), value[0].transpose(0, 1)
    )
    own_query = query[0].transpose(0, 1).contiguous()
    return step.operations.attend(own_query, store, step.batch, asked)[None], None


AttentionInterface.register(ATTENTION, _attend)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_bytes()
