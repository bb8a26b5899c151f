"""Reads a safetensors file without a copy of its tensors.

safetensors' own `load` copies them, and holds the interpreter meanwhile: 10 ms for 50 MB, in which nobody gets a token.
Its mapping into memory is not for us: the file may be removed while it is in use, from another machine too, and an access
then ends the process. The format: https://github.com/huggingface/safetensors#format.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from torch import Tensor

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# 10,000 tensors take about 1.5 MB. To parse a header holds the interpreter: 6.5 s for the 100 MB that safetensors allows.
MAX_HEADER_BYTES = 10_000_000

# Bounded, because Python multiplies integers of any length. Strict, as safetensors is: no `true`, `2.0` or `"2"`.
_Size = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class _Entry(BaseModel):
    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: list[_Size] = Field(max_length=8)  # a LoRA weight has 2
    data_offsets: tuple[_Size, _Size]


_Header = TypeAdapter(dict[str, Any])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Floating-point tensors by name, as LoRA weights are: integers, booleans and 8-bit floats are refused.

    Raises OSError, or ValueError, with the first fault, where the file is none of the kind or its header has over
    `MAX_HEADER_BYTES`.
    """
    data = torch.from_numpy(np.fromfile(path, np.uint8))
    begin = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
    if begin - 8 > MAX_HEADER_BYTES or begin > len(data):
        raise ValueError(
            f"a header of {begin - 8} bytes in a file of {len(data)}; up to {MAX_HEADER_BYTES} are "
            "accepted"
        )
    entries = _entries(data[8:begin].numpy().tobytes())
    data, end = data[begin:], 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, next_end = entry.data_offsets
        num_bytes = math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize
        if begin != end or next_end - begin != num_bytes:
            raise ValueError(
                f"{_short(name)}: bytes {begin} to {next_end} for {entry.dtype} {entry.shape}, expected "
                f"{end} to {end + num_bytes}"
            )
        end = next_end
    if end != len(data):
        raise ValueError(f"tensors of {end} bytes, and {len(data)} of data")
    return {name: _view(data, name, entry) for name, entry in entries.items()}


def _entries(text: bytes) -> dict[str, _Entry]:
    """One after the other: pydantic would gather every fault of the header before it raised."""
    place, entries = "the header", {}
    try:
        header = _Header.validate_json(text)
        metadata = header.pop("__metadata__", None)
        for name, value in header.items():
            place = name
            entries[name] = _Entry.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ": ".join([_short(place), *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['msg']}") from None  # which is as long as the input
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise ValueError("__metadata__ is not an object of strings")
    return entries


def _view(data: Tensor, name: str, entry: _Entry) -> Tensor:
    dtype, (begin, end) = _DTYPES[entry.dtype], entry.data_offsets
    part = data[begin:end]
    if part.storage_offset() % dtype.itemsize:
        part = part.clone()
    try:
        return part.view(dtype).view(entry.shape)
    except (RuntimeError, TypeError) as error:  # sizes beside a 0 that torch cannot count
        raise ValueError(f"{_short(name)}: {entry.dtype} {entry.shape} is no tensor") from error


def _short(name: str) -> str:
    return name[:200]
