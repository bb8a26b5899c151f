"""The keys and values of running sequences: one store for all, a contiguous region for each sequence.

A region is reserved whole at admission (prompt + max_new_tokens), so a running sequence never runs out of room and is
never preempted, and attention reads its keys and values as views, without a gather.
"""

import torch
from torch import Tensor


class RegionAllocator:
    """First-fit allocation of contiguous ranges: of tokens, or of a bank's columns."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = [(0, capacity)]  # (start, length), ordered, never touching

    @property
    def num_free(self) -> int:
        return sum(length for _, length in self._free)

    def allocate(self, length: int) -> int | None:
        """The start of a region of `length` tokens, or None."""
        for i, (start, free) in enumerate(self._free):
            if free >= length:
                rest = [(start + length, free - length)] if free > length else []
                self._free[i : i + 1] = rest
                return start
        return None

    def release(self, start: int, length: int) -> None:
        self._free.append((start, length))
        self._free.sort()
        merged = self._free[:1]
        for begin, size in self._free[1:]:
            last_begin, last_size = merged[-1]
            if last_begin + last_size == begin:
                merged[-1] = (last_begin, last_size + size)
            else:
                merged.append((begin, size))
        self._free = merged


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
