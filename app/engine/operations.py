"""What lies between a layer's products, in plain torch: the reference, and what a CPU runs. kernels.py has the same for GPUs.

`z` is what a Projection returns: the base's outputs [tokens, outputs] and, beside them, x A of all adapters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from app.engine.attention import SpanAttention
from app.engine.lora_bank import LoraBank
from app.engine.projection import Projection
from app.engine.step import Step


@dataclass(frozen=True, slots=True)
class Batch:
    """A step on the device."""

    token_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    places: Tensor  # [tokens], where their keys and values go
    last_rows: Tensor  # [sequences that get a new token]
    columns: int  # of the bank, that this step multiplies
    # For plain torch
    attention: SpanAttention | None = None
    foreign: Tensor | None = None  # [tokens, columns], see LoraBank
    # For kernels
    own: Tensor | None = None  # [tokens, width], 1 = the token's adapter's column
    bounds: Tensor | None = None  # [2, tokens], its first column and the end of its columns
    # [4, blocks]: first token, number of tokens, position, start of the region
    blocks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """What a layer asks of attention beside its tensors."""

    scaling: float
    sliding_window: int | None


class Operations:
    """Over one bank. Every method takes and returns [tokens, features] of one step; they keep nothing.

    `store`: a layer's keys and values, [places, kv_heads, head_dim].
    """

    def __init__(self, bank: LoraBank) -> None:
        self._bank = bank

    def prepare(self, step: Step, token_ids: Tensor) -> Batch:
        bank = self._bank
        bank.select(step.slots)

        def on_device(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=token_ids.device)

        return Batch(
            token_ids=token_ids,
            positions=on_device(step.positions),
            places=on_device(step.places),
            last_rows=on_device(step.last_rows),
            columns=0 if bank.foreign is None else bank.foreign.shape[1],
            attention=SpanAttention(step.spans),
            foreign=bank.foreign,
        )

    def project(self, projection: Projection, x: Tensor, batch: Batch) -> Tensor:
        columns = batch.columns if projection.is_used else 0
        if columns and len(projection.sites) > 1:
            columns = projection.width
        return projection(x, columns)

    def normalise(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467)."""
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)

    def add(self, residual: Tensor, z: Tensor, projection: Projection, batch: Batch) -> Tensor:
        """residual + z, in place."""
        return residual.add_(_with_adapters(z, projection, batch))

    def gate(self, z: Tensor, projection: Projection, batch: Batch, dtype: torch.dtype) -> Tensor:
        """SiLU of z's first half times its second (Shazeer 2020, arXiv:2002.05202), in `dtype`."""
        gate, up = _with_adapters(z, projection, batch).to(dtype).chunk(2, -1)
        return functional.silu(gate).mul_(up)

    def rotate_and_store(
        self,
        z: Tensor,
        projection: Projection,
        batch: Batch,
        rotary: tuple[Tensor, Tensor],
        store: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Splits z into heads, rotates queries and keys by `rotary` (cos and sin, [tokens, head_dim / 2]), and writes
        keys and values to their places in the store; -> queries [tokens, heads, head_dim].

        Rotary embedding: Su et al. 2021, arXiv:2104.09864.
        """
        keys, values = store
        num_kv_heads, head_dim = keys.shape[1:]
        y = _with_adapters(z, projection, batch).to(keys.dtype)
        heads = y.view(y.shape[0], -1, head_dim)
        first, second = heads[:, :-num_kv_heads].chunk(2, -1)
        cos, sin = (table[:, None] for table in rotary)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        keys.index_copy_(0, batch.places, rotated[:, -num_kv_heads:])
        values.index_copy_(0, batch.places, heads[:, -num_kv_heads:])
        return rotated[:, :-num_kv_heads]

    def attend(
        self, query: Tensor, store: tuple[Tensor, Tensor], batch: Batch, asked: Attention
    ) -> Tensor:
        """Queries [tokens, heads, head_dim] over the store -> [tokens, heads, head_dim]."""
        assert batch.attention is not None
        return batch.attention(
            query, *store, scaling=asked.scaling, sliding_window=asked.sliding_window
        )


def _with_adapters(z: Tensor, projection: Projection, batch: Batch) -> Tensor:
    """The base's outputs plus each token's own adapter's update."""
    num_outputs = projection.num_outputs
    y = z[:, :num_outputs]
    if z.shape[1] == num_outputs or batch.foreign is None:
        return y
    stride = (z.shape[1] - num_outputs) // len(projection.sites)
    parts = []
    for i, outputs in enumerate(projection.outputs):
        start = num_outputs + i * stride
        # Filled, not multiplied: a neighbour's inf times 0 would be NaN.
        hidden = z[:, start : start + batch.columns].masked_fill(batch.foreign, 0)
        parts.append(
            torch.addmm(y[:, outputs], hidden.to(y.dtype), projection.b[: batch.columns, outputs])
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
