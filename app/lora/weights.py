"""An adapter's weights as the LoRA bank holds them, in one piece of memory, so that they move to a device in one copy."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

# site -> (A [rank, in], B [rank, out]) with the scaling folded into B
SiteWeights = Mapping[str, tuple[Tensor, Tensor]]


class SiteShape(NamedTuple):
    name: str
    rank: int
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class LoraLayout:
    """How matrices lie in one piece of memory: every A [rank, in], then every B [rank, out]."""

    sites: tuple[SiteShape, ...]
    a_dtype: torch.dtype  # not narrower than b_dtype, so that B begins where it may
    b_dtype: torch.dtype

    @property
    def rank(self) -> int:
        return max(site.rank for site in self.sites)

    @property
    def a_lengths(self) -> list[int]:
        """Values in each A."""
        return [site.rank * site.in_features for site in self.sites]

    @property
    def b_lengths(self) -> list[int]:
        """Values in each B."""
        return [site.rank * site.out_features for site in self.sites]

    @property
    def num_bytes(self) -> int:
        return self._num_a_bytes + self.b_dtype.itemsize * sum(self.b_lengths)

    @property
    def begins(self) -> dict[str, tuple[int, int]]:
        """Where each site's A and B begin, in values, if both have one dtype."""
        begins = [0, *accumulate([*self.a_lengths, *self.b_lengths])]
        pairs = zip(begins, begins[len(self.sites) :], strict=False)
        return {site.name: pair for site, pair in zip(self.sites, pairs, strict=False)}

    def parts(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Of `data`, uint8 [num_bytes], every A [values] and every B [values]."""
        middle = self._num_a_bytes
        return data[:middle].view(self.a_dtype), data[middle:].view(self.b_dtype)

    def split(self, data: Tensor) -> SiteWeights:
        """Views of `data`."""
        every_a, every_b = self.parts(data)
        pairs = zip(
            torch.split(every_a, self.a_lengths), torch.split(every_b, self.b_lengths), strict=True
        )
        return {
            site.name: (a.view(site.rank, -1), b.view(site.rank, -1))
            for site, (a, b) in zip(self.sites, pairs, strict=True)
        }

    @property
    def _num_a_bytes(self) -> int:
        return self.a_dtype.itemsize * sum(self.a_lengths)


@dataclass(frozen=True)
class LoraWeights:
    """Ready for the bank."""

    layout: LoraLayout
    data: Tensor  # uint8 [bytes]

    @property
    def rank(self) -> int:
        return self.layout.rank

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    @cached_property
    def sites(self) -> SiteWeights:
        """Views of the data."""
        return self.layout.split(self.data)
