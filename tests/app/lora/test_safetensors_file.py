"""Tensors as safetensors itself reads them, and a reason for what is no such file."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.lora.safetensors_file import read_tensors

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def write(path: Path, header: object, data: bytes = b"", num_bytes: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if num_bytes is None else num_bytes
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_safetensors_reads(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tensors = {f"{d}": torch.arange(15).reshape(3, 5).to(d) for d in FLOATS}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)}
    save_file(tensors, path, metadata={"format": "pt"})
    read = read_tensors(path)
    expected = load_file(path)
    assert set(read) == set(expected)
    for name in expected:
        assert read[name].dtype == expected[name].dtype
        assert torch.equal(read[name], expected[name])


def test_tensors_need_not_be_aligned(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    header = json.dumps({"a": entry()}).encode()
    header += b" " * (1 - len(header) % 2)  # which a writer that aligns makes a multiple of 8
    path = write(tmp_path / "t", header, values.numpy().tobytes())
    assert torch.equal(read_tensors(path)["a"], values)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ([], "dict"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        ({"a": 1}, "valid dictionary"),
        ({"a": entry(dtype="I8")}, "'BF16'"),
        ({"a": entry(shape=(-2,))}, "greater than or equal to 0"),
        ({"a": entry(offsets=(0,))}, "data_offsets"),
        ({"a": entry(offsets=(8, 16))}, "a: bytes 8 to 16 for F32 [2], expected 0 to 8"),
        ({"a": entry(offsets=(8, 0))}, "a: bytes 8 to 0"),
        ({"a": entry(shape=(3,))}, "for F32 [3], expected 0 to 12"),
        ({"a": entry(shape=(2**40, 2**40))}, "a: bytes 0 to 8"),
        ({"a": entry(shape=(3,), offsets=(0, 12))}, "tensors of 12 bytes, and 8 of data"),
        ({"a": entry(shape=(1,), offsets=(0, 4))}, "tensors of 4 bytes, and 8 of data"),
        ({"a": entry(), "b": entry()}, "b: bytes 0 to 8 for F32 [2], expected 8 to 16"),
        ({}, "tensors of 0 bytes, and 8 of data"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, header: object, word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(word)):
        read_tensors(write(tmp_path / "t", header, bytes(8)))


@pytest.mark.parametrize("num_bytes", [9, 2**63])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"a header of {num_bytes} bytes in a file of 16"):
        read_tensors(write(tmp_path / "t", {"a": 1}, b"", num_bytes))


@pytest.mark.parametrize("content", [b"", b"\0" * 3])
def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ValueError, match="a header of"):
        read_tensors(tmp_path / "t")
