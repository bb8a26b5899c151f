"""An adapter's weights as the LoRA bank holds them, in one piece of memory: they move between host and device at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Page-locked memory is given out in powers of two, and given back to nobody but the next who asks for the same size.
_CHUNK_BYTES = 1 << 20

# site -> (A [rank, in], B [rank, out]) with the scaling folded into B
SiteWeights = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class LoraLayout:
    """How matrices lie in one piece of memory: every A [rank, in], then every B [rank, out]."""

    shapes: Mapping[str, tuple[int, int, int]]  # site -> its rank, in features, out features
    a_dtype: torch.dtype  # not narrower than b_dtype, so that B begins where it may
    b_dtype: torch.dtype

    @property
    def rank(self) -> int:
        return max(rank for rank, _, _ in self.shapes.values())

    @property
    def num_bytes(self) -> int:
        return self._num_a_bytes + self.b_dtype.itemsize * sum(
            rank * num_out for rank, _, num_out in self.shapes.values()
        )

    def split(self, data: Tensor) -> SiteWeights:
        """Views of `data`, uint8 [num_bytes]."""
        shapes = self.shapes.values()
        middle = self._num_a_bytes
        every_a = torch.split(data[:middle].view(self.a_dtype), [r * i for r, i, _ in shapes])
        every_b = torch.split(data[middle:].view(self.b_dtype), [r * o for r, _, o in shapes])
        return {
            name: (a.view(rank, -1), b.view(rank, -1))
            for (name, (rank, _, _)), a, b in zip(
                self.shapes.items(), every_a, every_b, strict=True
            )
        }

    @property
    def _num_a_bytes(self) -> int:
        return self.a_dtype.itemsize * sum(
            rank * num_in for rank, num_in, _ in self.shapes.values()
        )


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """Ready for the bank."""

    layout: LoraLayout
    data: Tensor  # uint8 [bytes]
    sites: SiteWeights  # views of it

    @classmethod
    def of(cls, layout: LoraLayout, data: Tensor) -> "LoraWeights":
        return cls(layout, data, layout.split(data))

    @property
    def rank(self) -> int:
        return self.layout.rank

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def on(self, device: torch.device) -> "LoraWeights":
        """These, which are where they are to be."""
        assert device == self.data.device
        return self


class LockedWeights:
    """Kept in host memory that a GPU reads by itself, in chunks."""

    def __init__(self, weights: LoraWeights) -> None:
        self._layout = weights.layout
        self._chunks = [
            torch.empty(_CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
            for _ in range(math.ceil(weights.num_bytes / _CHUNK_BYTES))
        ]
        for chunk, part in zip(self._chunks, torch.split(weights.data, _CHUNK_BYTES), strict=True):
            chunk[: len(part)].copy_(part)

    @property
    def num_bytes(self) -> int:
        return _CHUNK_BYTES * len(self._chunks)

    def on(self, device: torch.device) -> LoraWeights:
        """A copy on `device`, which the current stream makes. Where that has no memory left, one here."""
        num_bytes = self._layout.num_bytes
        try:
            data = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            data = torch.empty(num_bytes, dtype=torch.uint8)
        for part, chunk in zip(torch.split(data, _CHUNK_BYTES), self._chunks, strict=True):
            part.copy_(chunk[: len(part)], non_blocking=True)
        return LoraWeights.of(self._layout, data)
