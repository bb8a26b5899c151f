"""Attention of each sequence over its own region of the key/value store, in plain torch. Nobody's NaN reaches another.

One call for each sequence costs more than its attention: 44 us beside 2 to 4 at a single query. So the single queries of
a step, which are nearly all there are, become rows of one sparse matrix; only prompts are attended to one by one.
"""

from collections.abc import Sequence as Spans

import torch
from torch import Tensor
from torch.nn import functional

from app.model.step import Span

# Below this many the sparse products' own cost, about 0.1 ms, is the greater one.
_FEW = 4


class SpanAttention:
    """The spans of one step, and what all layers share of their attention."""

    def __init__(self, spans: Spans[Span]) -> None:
        self.spans = spans
        self._singles = [span for span in spans if span.length == 1]
        self._others = [span for span in spans if span.length > 1]
        self._single_queries: dict[int | None, _SingleQueries] = {}  # by sliding window

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Causal attention; query [tokens, heads, head_dim], the layer's store [places, kv_heads, head_dim] -> as query."""
        if len(self._singles) < _FEW or keys.device.type != "cpu" or keys.dtype != torch.float32:
            return _attend_each(query, keys, values, self.spans, scaling, sliding_window)
        if sliding_window not in self._single_queries:
            self._single_queries[sliding_window] = _SingleQueries(
                self._singles, sliding_window, query.shape[1], keys.shape[:2]
            )
        singles = self._single_queries[sliding_window]
        if not self._others:
            return singles.attend(query, keys, values, scaling)
        output = _attend_each(query, keys, values, self._others, scaling, sliding_window)
        output[singles.tokens] = singles.attend(query[singles.tokens], keys, values, scaling)
        return output


class _SingleQueries:
    """Which query meets which key, as a sparse matrix: row = (sequence, head), column = (place, key/value head)."""

    def __init__(
        self, spans: Spans[Span], sliding_window: int | None, num_heads: int, store: torch.Size
    ) -> None:
        """`store`: (places, kv_heads)"""
        num_places, num_kv_heads = store
        self.tokens = torch.tensor([span.start for span in spans])
        firsts = [_first_key(span, sliding_window) for span in spans]
        counts = torch.tensor([s.num_keys - f for s, f in zip(spans, firsts, strict=True)])
        places = torch.tensor([s.region_start + f for s, f in zip(spans, firsts, strict=True)])
        num_rows = len(spans) * num_heads
        offsets = torch.zeros(num_rows + 1, dtype=torch.long)
        torch.cumsum(counts.repeat_interleave(num_heads), 0, out=offsets[1:])
        self._offsets = offsets[:-1]
        self._rows = torch.repeat_interleave(torch.arange(num_rows), offsets.diff())
        row_places = places.repeat_interleave(num_heads) - self._offsets
        row_heads = torch.arange(num_heads).repeat(len(spans)) // (num_heads // num_kv_heads)
        self._columns = torch.arange(len(self._rows)) * num_kv_heads
        self._columns += (row_places * num_kv_heads + row_heads)[self._rows]
        self._pattern = torch.sparse_csr_tensor(
            offsets,
            self._columns,
            torch.zeros(len(self._columns)),
            size=(num_rows, num_places * num_kv_heads),
            check_invariants=False,
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """query [sequences, heads, head_dim] -> as query"""
        rows = query.reshape(-1, query.shape[-1])
        scores = torch.sparse.sampled_addmm(
            self._pattern, rows, keys.flatten(0, 1).T, beta=0.0, alpha=scaling
        ).values()
        highest = scores.new_full([len(rows)], -torch.inf)
        highest.scatter_reduce_(0, self._rows, scores, "amax")
        weights = (scores - highest[self._rows]).exp_()
        sums = torch.zeros_like(highest).index_add_(0, self._rows, weights)
        weighted = functional.embedding_bag(
            self._columns,
            values.flatten(0, 1),
            self._offsets,
            mode="sum",
            per_sample_weights=weights,
        )
        return weighted.div_(sums[:, None]).view_as(query)


def _attend_each(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    spans: Spans[Span],
    scaling: float,
    sliding_window: int | None,
) -> Tensor:
    """One call a sequence; -> as query, of which only the spans' tokens are meant."""
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
    by_head = query.transpose(0, 1)[None]
    grouped = query.shape[1] != keys.shape[1]
    output = torch.empty_like(query)
    for i, own_keys, own_values in zip(order, split_keys, split_values, strict=True):
        span = spans[i]
        tokens = slice(span.start, span.start + span.length)
        attended = functional.scaled_dot_product_attention(
            by_head[:, :, tokens],
            own_keys,
            own_values,
            attn_mask=_causal_mask(span, firsts[i], sliding_window, query.device),
            is_causal=span.length > 1 and span.position == 0 and sliding_window is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        output[tokens] = attended[0].transpose(0, 1)
    return output


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
