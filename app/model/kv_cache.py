"""The keys and values of running sequences: one store for all, a contiguous region for each sequence.

A region is reserved whole at admission (prompt + max_new_tokens), so a running sequence never runs out of room and is
never preempted, and attention reads its keys and values as views, without a gather.
"""

import torch
from torch import Tensor

from app.lora.regions import RegionAllocator


class KVCache:
    """Key and value tensors, [layers][tokens + 1, kv_heads, head_dim], and who owns which tokens."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # One place more than is given out, where padding writes.
        shape = (num_tokens + 1, num_kv_heads, head_dim)
        self.spare_place = num_tokens
        self.device = device
        self.regions = RegionAllocator(num_tokens)
        # Not zeros: on a CPU memory that nobody has written yet is not taken. Nothing unwritten is ever read.
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    def write(
        self, layer: int, positions: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Stores keys and values [tokens, kv_heads, head_dim] at `positions` [tokens]; returns the layer's store."""
        positions = positions.long()  # kernels have them in 32 bits, which index_copy_ refuses
        self._keys[layer].index_copy_(0, positions, keys)
        self._values[layer].index_copy_(0, positions, values)
        return self.layer(layer)

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, [tokens + 1, kv_heads, head_dim]."""
        return self._keys[number], self._values[number]
