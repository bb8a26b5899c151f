"""Reads a safetensors file without a copy of its tensors.

safetensors' own `load` copies them, and holds the interpreter meanwhile: 10 ms for 50 MB, in which nobody gets a token.
Its mapping into memory is not for us: the file may be removed while it is in use, from another machine too, and an access
then ends the process. The format: https://github.com/huggingface/safetensors#format.
"""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, NonNegativeInt, TypeAdapter
from torch import Tensor

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER_BYTES = 100_000_000  # as safetensors has it


class _Entry(BaseModel):
    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


_Header = TypeAdapter(dict[str, Any])
_Entries = TypeAdapter(dict[str, _Entry])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Floating-point tensors by name. Raises OSError, or ValueError where the file is none of the kind."""
    data = torch.from_numpy(np.fromfile(path, np.uint8))
    begin = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
    if begin > min(len(data), _MAX_HEADER_BYTES):
        raise ValueError(f"a header of {begin - 8} bytes in a file of {len(data)}")
    header = _Header.validate_json(data[8:begin].numpy().tobytes())
    header.pop("__metadata__", None)
    entries = _Entries.validate_python(header)
    data, end = data[begin:], 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, next_end = entry.data_offsets
        num_bytes = math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize
        if begin != end or next_end - begin != num_bytes:
            raise ValueError(
                f"{name}: bytes {begin} to {next_end} for {entry.dtype} {entry.shape}, expected "
                f"{end} to {end + num_bytes}"
            )
        end = next_end
    if end != len(data):
        raise ValueError(f"tensors of {end} bytes, and {len(data)} of data")
    return {name: _view(data, entry) for name, entry in entries.items()}


def _view(data: Tensor, entry: _Entry) -> Tensor:
    dtype, (begin, end) = _DTYPES[entry.dtype], entry.data_offsets
    part = data[begin:end]
    if part.storage_offset() % dtype.itemsize:
        part = part.clone()
    return part.view(dtype).view(entry.shape)
