"""4-bit layers that keep an unpacked copy of their frozen weights, for CPUs."""

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn

from core.memory import free_host_bytes

# Of free memory, that copies may take.
_MEMORY_SHARE = 0.25


class UnpackedLinear4bit(Linear4bit):  # type: ignore[misc]
    """Multiplies with what bitsandbytes would unpack anew at every call, forward and backward."""

    unpacked: (
        torch.Tensor
    )  # [out, in]; no parameter and no buffer, so that it is neither saved nor counted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(self.unpacked.dtype)
        y = nn.functional.linear(x.to(self.unpacked.dtype), self.unpacked, bias)
        return y.to(x.dtype)


def unpack(model: nn.Module, dtype: torch.dtype) -> bool:
    """Makes the 4-bit layers of `model` keep their weights in `dtype` too, if memory allows; whether it did."""
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    num_bytes = sum(dtype.itemsize * m.in_features * m.out_features for m in layers)
    if num_bytes > _MEMORY_SHARE * free_host_bytes():
        return False
    for layer in layers:
        layer.unpacked = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
        layer.__class__ = UnpackedLinear4bit
    return True
