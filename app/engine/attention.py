"""Attention of each sequence over its own region of the key/value store, in plain torch."""

from collections.abc import Sequence as Spans
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.step import Span


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    spans: Spans[Span],
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention; query [tokens, heads, head_dim], the layer's store [places, kv_heads, head_dim] -> as query.

    One call a sequence: nobody's NaN can reach another, and no padding is computed.
    """
    order = sorted(range(len(spans)), key=lambda i: spans[i].region_start)
    firsts = [_first_key(span, sliding_window) for span in spans]
    sizes, end = [], 0
    for i in order:
        begin = spans[i].region_start + firsts[i]
        sizes += [begin - end, spans[i].num_keys - firsts[i]]
        end = sum(sizes[-2:]) + end
    sizes.append(keys.shape[0] - end)
    # One split makes all views: slicing for each sequence costs as much as its attention.
    split_keys = torch.split(keys.transpose(0, 1)[None], sizes, 2)[1::2]
    split_values = torch.split(values.transpose(0, 1)[None], sizes, 2)[1::2]
    queries = torch.split(query.transpose(0, 1)[None], [span.length for span in spans], 2)
    grouped = query.shape[1] != keys.shape[1]
    outputs: list[Any] = [None] * len(spans)
    for i, own_keys, own_values in zip(order, split_keys, split_values, strict=True):
        span = spans[i]
        outputs[i] = functional.scaled_dot_product_attention(
            queries[i],
            own_keys,
            own_values,
            attn_mask=_causal_mask(span, firsts[i], sliding_window, query.device),
            is_causal=span.length > 1 and span.position == 0 and sliding_window is None,
            scale=scaling,
            enable_gqa=grouped,
        )
    return torch.cat(outputs, 2)[0].transpose(0, 1)


def _first_key(span: Span, sliding_window: int | None) -> int:
    return 0 if sliding_window is None else max(0, span.position + 1 - sliding_window)


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
