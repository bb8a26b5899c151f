"""Linear layers that read the same input (q, k and v; gate and up), multiplied as one."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.lora.bank import BankedLinear


class Projection:
    """The base's layers. The sites keep views of what is fused here: what a load writes is here at once."""

    def __init__(self, sites: list[BankedLinear], below: Sequence[Tensor] = ()) -> None:
        """`below`: matrices [rows, in] that follow the base's weights in what is fused."""
        self.sites = sites
        ends = list(accumulate(site.base.out_features for site in sites))
        self.outputs = [
            slice(end - site.base.out_features, end) for site, end in zip(sites, ends, strict=True)
        ]
        self.num_outputs = ends[-1]
        self._weight, self._bias = self._fuse(below)

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, in] -> [tokens, num_outputs], without adapters"""
        return self._multiply(x, self.num_outputs)

    def _multiply(self, x: Tensor, num_rows: int) -> Tensor:
        """With the first `num_rows` of the fused weights, or each layer by itself."""
        if self._weight is None:
            parts = [site.base(x) for site in self.sites]
            return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        bias = None if self._bias is None else self._bias[:num_rows]
        return functional.linear(x.to(self._weight.dtype), self._weight[:num_rows], bias)

    def _fuse(self, below: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """The weights and `below` under one another [rows, in], and the biases; None where they are packed."""
        bases = [site.base for site in self.sites]
        parts = [*(base.weight for base in bases), *below]
        if len({part.dtype for part in parts}) > 1 or not bases[0].weight.is_floating_point():
            return None, None
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        bias = None
        if any(base.bias is not None for base in bases):
            bias = torch.zeros_like(weight[:, 0])
        for base, outputs in zip(bases, self.outputs, strict=True):
            base.weight = nn.Parameter(weight[outputs], requires_grad=False)
            if bias is not None and base.bias is not None:
                bias[outputs] = base.bias
        return weight, bias


class StackedProjection(Projection):
    """With the adapters' A below the base's weights: one product gives what the base says and x A of every adapter.

    What is left of LoRA is one small product with `b` [width, outputs], the sites' B side by side, which the kernel
    after it takes along.
    """

    def __init__(self, sites: list[BankedLinear]) -> None:
        super().__init__(sites, [site.lora_a for site in sites])
        width = len(sites[0].lora_a)
        self.b = torch.cat([site.lora_b for site in sites], 1)
        if self._weight is None:
            self._a = torch.cat([site.lora_a for site in sites])
        else:
            self._a = self._weight[self.num_outputs :]
        for i, (site, outputs) in enumerate(zip(sites, self.outputs, strict=True)):
            site.lora_a = self._a[i * width : (i + 1) * width]
            site.lora_b = self.b[:, outputs]

    def with_hidden(self, x: Tensor) -> Tensor:
        """x [tokens, in] -> [tokens, num_outputs + sites * width], the outputs and each site's x A"""
        if self._weight is not None:
            return self._multiply(x, len(self._weight))
        return torch.cat([self(x), x.to(self._a.dtype) @ self._a.T], 1)
