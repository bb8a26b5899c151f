"""What adapters add to a base layer's outputs in one step, in plain torch: the reference, and what a CPU runs."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class LoraUpdate(Protocol):
    """Each token's own columns of the bank, and no other's: a neighbour's inf must not become its NaN."""

    def add_to(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
        """y [tokens, out] += (x A, own columns) B, in place; x [tokens, in], a [width, in], b [width, out]"""


class MaskedUpdate:
    """Multiplies every token with all columns in use, then forgets what is not its own."""

    def __init__(self, own: Tensor, used: list[int]) -> None:
        """`own` [tokens, width], True = the token's adapter's column. `used`: the columns that are anybody's, ascending."""
        first, end = used[0], used[-1] + 1
        is_stretch = end - first == len(used)  # which needs no copy
        self._used = slice(first, end) if is_stretch else torch.tensor(used, device=own.device)
        self._foreign = ~own[:, self._used]

    def add_to(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
        hidden = x.to(a.dtype) @ a[self._used].T
        y.addmm_(hidden.masked_fill_(self._foreign, 0).to(y.dtype), b[self._used].to(y.dtype))


class SparseUpdate:
    """Multiplies each token with its own columns alone, whatever the number of adapters; on a CPU."""

    A_DTYPE = torch.float32  # the only one that sampled_addmm knows there

    def __init__(self, own: Tensor) -> None:
        """`own` as MaskedUpdate."""
        columns = own.nonzero()[:, 1]
        offsets = torch.zeros(len(own) + 1, dtype=torch.long)
        torch.cumsum(own.sum(1), 0, out=offsets[1:])
        self._columns, self._offsets = columns, offsets
        self._pattern = torch.sparse_csr_tensor(
            offsets,
            columns,
            torch.zeros(len(columns), dtype=self.A_DTYPE),
            size=own.shape,
            check_invariants=False,
        )

    def add_to(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
        x = x.to(self.A_DTYPE)
        hidden = torch.sparse.sampled_addmm(self._pattern, x, a.T, beta=0.0).values()
        y.add_(
            functional.embedding_bag(
                self._columns,
                b,
                self._offsets[:-1],
                mode="sum",
                per_sample_weights=hidden.to(b.dtype),
            )
        )
