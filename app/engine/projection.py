"""Linear layers that read the same input (q, k and v; gate and up), multiplied as one, with the adapters' A beside them.

One product gives what the base model says and x A of every adapter; what is left of LoRA is one small product that the
operation after it takes along.
"""

from itertools import accumulate

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional

from app.engine.lora_bank import BankedLinear


class Projection:
    """`b` [width, outputs] holds the sites' B side by side. The sites keep views: what a load writes is here at once."""

    def __init__(self, sites: list[BankedLinear]) -> None:
        self.sites = sites
        self.width: int = sites[0].lora_a.shape[0]
        ends = list(accumulate(site.base.out_features for site in sites))
        self.outputs = [
            slice(end - site.base.out_features, end) for site, end in zip(sites, ends, strict=True)
        ]
        self.num_outputs = ends[-1]
        self.b = torch.cat([site.lora_b for site in sites], 1)
        self._weight, self._bias = self._fuse()
        if self._weight is None:
            self._a = torch.cat([site.lora_a for site in sites])
        else:
            self._a = self._weight[self.num_outputs :]
        for i, (site, outputs) in enumerate(zip(sites, self.outputs, strict=True)):
            site.lora_a = self._a[i * self.width : (i + 1) * self.width]
            site.lora_b = self.b[:, outputs]

    @property
    def is_used(self) -> bool:
        """Whether a resident adapter targets any of the layers."""
        return any(site.num_adapters for site in self.sites)

    def __call__(self, x: Tensor, columns: int) -> Tensor:
        """x [tokens, in] -> [tokens, num_outputs + x A], the latter `columns` wide for each site; 0: without it.

        Fewer columns than the bank has may be asked for where there is one site.
        """
        num_rows = self.num_outputs + columns * len(self.sites)
        if self._weight is not None:
            bias = None if self._bias is None else self._bias[:num_rows]
            return functional.linear(x.to(self._weight.dtype), self._weight[:num_rows], bias)
        parts = [site.base(x) for site in self.sites]
        if columns:
            parts.append(x.to(self._a.dtype) @ self._a[: columns * len(self.sites)].T)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _fuse(self) -> tuple[Tensor | None, Tensor | None]:
        """[outputs + sites * width, in] and its bias; None where the weights are packed."""
        bases = [site.base for site in self.sites]
        if any(isinstance(base, Linear4bit) or base.weight.dtype != self.b.dtype for base in bases):
            return None, None
        weight = torch.cat(
            [*(base.weight for base in bases), *(site.lora_a for site in self.sites)]
        )
        bias = None
        if any(base.bias is not None for base in bases):
            none = torch.zeros(self.width * len(bases), dtype=weight.dtype, device=weight.device)
            biases = [
                torch.zeros_like(weight[: base.out_features, 0]) if base.bias is None else base.bias
                for base in bases
            ]
            bias = torch.cat([*biases, none])
        for base, outputs in zip(bases, self.outputs, strict=True):
            base.weight = nn.Parameter(weight[outputs], requires_grad=False)
        return weight, bias
