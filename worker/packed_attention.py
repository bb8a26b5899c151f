"""Causal attention for training batches: each row of a packed batch by itself, with no mask and no padding.

Transformers would mask the whole [tokens, tokens] square, which a packed batch of short rows hardly uses: the cost of 4096
packed tokens on a GPU would be mostly that.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

varlen_attn: Callable[..., Any] | None = None
with suppress(ImportError):  # before torch 2.10
    varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn

_NAME = "dragoman-training"
_HALVES = (torch.float16, torch.bfloat16)


def _attend(
    module: nn.Module,
    query: Tensor,  # [batch, heads, tokens, head_dim]
    key: Tensor,  # [batch, kv_heads, tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor
    | None = None,  # [rows + 1]: where packed rows begin; None: one row each, padded on the right
    max_length_q: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """-> [batch, tokens, heads, head_dim]. What lies on the right of a row's end is never attended to from within."""
    grouped = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None:
        attended = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        return attended.transpose(1, 2), None
    if query.is_cuda and varlen_attn is not None:
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if query.dtype in _HALVES:
            return _attend_flash(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(torch.split(x, lengths, dim=2) for x in (query, key, value)), strict=True)
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in rows
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _attend_flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, starts: Tensor, longest: int
) -> Tensor:
    assert varlen_attn is not None
    head_dim, num_groups = query.shape[-1], query.shape[1] // key.shape[1]
    if scaling is not None and scaling != head_dim**-0.5:
        query = query * (scaling * head_dim**0.5)  # torch 2.10 has no `scale`
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [tokens, heads, head_dim]
    if num_groups > 1:
        k, v = (x.repeat_interleave(num_groups, dim=1) for x in (k, v))
    has_windows = "window_size" in inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if has_windows else {"is_causal": True}  # torch 2.10
    attended: Tensor = varlen_attn(q, k, v, starts, starts, longest, longest, **causal)
    return attended[None]


AttentionInterface.register(_NAME, _attend)


def is_possible(model: PreTrainedModel, max_length: int) -> bool:
    """Whether the attention of `model` is plain causal attention over rows of `max_length` tokens."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    is_plain = not getattr(config, "attn_logit_softcapping", None) and all(
        kind in ("full_attention", "sliding_attention")
        for kind in getattr(config, "layer_types", None) or []
    )
    return is_plain and (window is None or window >= max_length)


@contextmanager
def used_by(model: PreTrainedModel) -> Iterator[None]:
    """`model` attends so within; only for batches that are packed, or padded on the right."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
