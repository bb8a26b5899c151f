"""The operations between a layer's products as Triton kernels: one launch each, fixed shapes, fit for CUDA graphs."""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional

from app.model import triton_kernels
from app.model.operations import Attention, Batch, Operations
from app.model.projection import Projection, StackedProjection
from app.model.step import Step

BLOCK_TOKENS = 16  # queries of one sequence in one program: tl.dot takes no fewer rows
# Of the shapes tried on an H200 the fastest, or within 1 % of it, at 64 and 128 sequences of 50 tokens.
_ATTEND = {"N": 32, "num_warps": 1}
_HAS_PDL = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
_PDL: dict[str, Any] = {"PDL": True, "launch_pdl": True} if _HAS_PDL else {"PDL": False}


class Kernels(Operations):
    """Operations on a GPU."""

    def prepare(self, step: Step, token_ids: Tensor) -> Batch:
        self._bank.select(step.slots)  # for a model that runs in its own code
        num_tokens = len(step.token_ids)
        inputs = torch.tensor(step.pack(num_tokens, 0, BLOCK_TOKENS), dtype=torch.int32)
        return self.as_batch(
            inputs.to(token_ids.device), token_ids, len(step.last_rows), any(step.slots)
        )

    def as_batch(
        self, inputs: Tensor, token_ids: Tensor, num_last_rows: int, has_adapters: bool
    ) -> Batch:
        """Views of a packed step [10, tokens] (see Step.pack) on the device."""
        columns = self._bank.bounds.index_select(1, inputs[4]) if has_adapters else None
        return Batch(
            token_ids=token_ids,
            positions=inputs[2],
            places=inputs[3],
            last_rows=inputs[9, :num_last_rows],
            columns=columns,
            bounds=None if columns is None else self._tile_bounds(columns),
            blocks=inputs[5:9],
        )

    def project(self, projection: Projection, x: Tensor, batch: Batch) -> Tensor:
        return _stacked(projection).with_hidden(x) if batch.has_adapters else projection(x)

    def normalise(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        size = triton.next_power_of_2(x.shape[1])
        triton_kernels.normalise[(x.shape[0],)](
            out, x, weight, eps, x.shape[1], N=size, num_warps=8, **_PDL
        )
        return out

    def add(self, residual: Tensor, z: Tensor, projection: Projection, batch: Batch) -> Tensor:
        num_outputs = projection.num_outputs
        options = self._options(batch, 64, num_outputs % 64 == 0)
        grid = (triton.cdiv(z.shape[0], options["M"]), triton.cdiv(num_outputs, options["N"]))
        triton_kernels.add[grid](residual, num_outputs, *self._z(z, projection, batch), **options)
        return residual

    def gate(self, z: Tensor, projection: Projection, batch: Batch, dtype: torch.dtype) -> Tensor:
        num_features = projection.num_outputs // 2
        out = torch.empty(z.shape[0], num_features, dtype=dtype, device=z.device)
        options = self._options(batch, 64, num_features % 64 == 0)
        grid = (triton.cdiv(z.shape[0], options["M"]), triton.cdiv(num_features, options["N"]))
        is_shared = len(projection.sites) == 1
        up_hidden = projection.num_outputs + (0 if is_shared else self._bank.width)
        triton_kernels.gate[grid](
            out,
            num_features,
            up_hidden,
            *self._z(z, projection, batch),
            SHARED=is_shared,
            **options,
        )
        return out

    def rotate_and_store(
        self,
        z: Tensor,
        projection: Projection,
        batch: Batch,
        rotary: tuple[Tensor, Tensor],
        store: tuple[Tensor, Tensor],
    ) -> Tensor:
        keys, values = store
        num_kv_heads, head_dim = keys.shape[1:]
        num_heads = projection.num_outputs // head_dim - 2 * num_kv_heads
        query = torch.empty(z.shape[0], num_heads, head_dim, dtype=keys.dtype, device=z.device)
        size = triton.next_power_of_2(max(16, head_dim // 2))
        options = self._options(batch, size, size == head_dim // 2)
        grid = (triton.cdiv(z.shape[0], options["M"]), num_heads + 2 * num_kv_heads)
        triton_kernels.rotate_and_store[grid](
            query,
            keys,
            values,
            *rotary,
            batch.places,
            projection.num_outputs,
            *self._z(z, projection, batch),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HALF=head_dim // 2,
            SEPARATE=len(projection.sites) == 3,
            WIDTH=self._bank.width,
            **options,
        )
        return query

    def attend(
        self, query: Tensor, store: tuple[Tensor, Tensor], batch: Batch, asked: Attention
    ) -> Tensor:
        assert batch.blocks is not None
        keys, values = store
        num_heads, head_dim = query.shape[1:]
        out = torch.empty_like(query)
        num_blocks = batch.blocks.shape[1]
        triton_kernels.attend[(num_heads, num_blocks)](
            out,
            query,
            keys,
            values,
            batch.blocks,
            num_blocks,
            asked.scaling,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=keys.shape[1],
            HEAD_DIM=head_dim,
            WINDOW=asked.sliding_window or 0,
            M=BLOCK_TOKENS,
            **_ATTEND,
            D=triton.next_power_of_2(max(16, head_dim)),
            **_PDL,
        )
        return out

    def _z(self, z: Tensor, projection: Projection, batch: Batch) -> tuple[Any, ...]:
        b = _stacked(projection).b
        return z, z.stride(0), b, b.stride(0), batch.columns, batch.bounds, z.shape[0]

    def _options(self, batch: Batch, block_outputs: int, is_even: bool) -> dict[str, Any]:
        """`is_even`: no block of outputs goes beyond the last."""
        num_tokens = batch.positions.shape[0]
        block_columns = _block_columns(num_tokens)
        return {
            "HAS_ADAPTERS": batch.has_adapters,
            "BLOCK": block_columns,
            "M": _tile_rows(num_tokens),
            "N": block_outputs,
            "EVEN": is_even,
            "EVEN_BANK": self._bank.width % block_columns == 0,
            "num_warps": 4,
            **_PDL,
        }

    def _tile_bounds(self, columns: Tensor) -> Tensor:
        """Batch.columns -> [2, tiles]: the first column that a tile's tokens own, down to a whole block, and the end of theirs."""
        num_tokens = columns.shape[1]
        missing = -num_tokens % _tile_rows(num_tokens)
        begins = functional.pad(columns[0], (0, missing), value=self._bank.width)
        ends = functional.pad(columns[1], (0, missing))
        tiles = (-1, _tile_rows(num_tokens))
        block = _block_columns(num_tokens)
        begin = begins.view(tiles).amin(1) // block * block
        return torch.stack([begin, ends.view(tiles).amax(1)])


def _tile_rows(num_tokens: int) -> int:
    """Few tokens: many small programs; more: fewer, which read B once for all of theirs."""
    return 16 if num_tokens <= 192 else 64


def _block_columns(num_tokens: int) -> int:
    """Of the bank in one product. Where few or many tokens come, those of a tile share few adapters, and less is faster."""
    return 32 if 2 < num_tokens <= 64 else 16


def _stacked(projection: Projection) -> StackedProjection:
    assert isinstance(projection, StackedProjection)
    return projection
