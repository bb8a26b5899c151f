"""What lies between a layer's products, in plain torch: the reference, and what a CPU runs. kernels.py has the same for GPUs.

`z` is what `project` returns: here the layer's outputs; for kernels the base's, with x A of all adapters beside them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from app.lora.bank import LoraBank
from app.model.attention import SpanAttention
from app.model.projection import Projection
from app.model.step import Step


@dataclass(frozen=True, slots=True)
class Batch:
    """A step on the device."""

    token_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    places: Tensor  # [tokens], where their keys and values go
    last_rows: Tensor  # [sequences that get a new token]
    attention: SpanAttention | None = None  # for plain torch
    # For kernels
    # [2, tokens], the first of the bank's columns that are the token's adapter's, and their end
    columns: Tensor | None = None
    bounds: Tensor | None = None  # [2, tiles], the same of all tokens of a tile
    # [4, blocks]: first token, number of tokens, position, start of the region
    blocks: Tensor | None = None

    @property
    def has_adapters(self) -> bool:
        return self.columns is not None


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
        self._bank.select(step.slots)

        def on_device(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=token_ids.device)

        return Batch(
            token_ids=token_ids,
            positions=on_device(step.positions),
            places=on_device(step.places),
            last_rows=on_device(step.last_rows),
            attention=SpanAttention(step.spans),
        )

    def project(self, projection: Projection, x: Tensor, batch: Batch) -> Tensor:
        y = projection(x)
        for site, outputs in zip(projection.sites, projection.outputs, strict=True):
            site.add_update(y[:, outputs], x)
        return y

    def normalise(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467)."""
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)

    def add(self, residual: Tensor, z: Tensor, projection: Projection, batch: Batch) -> Tensor:
        """residual + z, in place."""
        return residual.add_(z)

    def gate(self, z: Tensor, projection: Projection, batch: Batch, dtype: torch.dtype) -> Tensor:
        """SiLU of z's first half times its second (Shazeer 2020, arXiv:2002.05202), in `dtype`."""
        gate, up = z.to(dtype).chunk(2, -1)
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
        y = z.to(keys.dtype)
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
