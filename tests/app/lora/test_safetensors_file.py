"""Tensors as safetensors itself reads them, and a reason for what is no such file."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.lora import safetensors_file
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
        ([], "the header: Input should be an object"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        ({"a": 1}, "a: Input should be a valid dictionary"),
        ({"a": entry(dtype="I8")}, "a: dtype: Input should be 'F64', 'F32', 'F16' or 'BF16'"),
        ({"a": entry(dtype="BOOL")}, "'BF16'"),
        ({"a": entry(dtype="F8_E4M3")}, "'BF16'"),
        ({"a": entry(shape=(-2,))}, "a: shape: 0: Input should be greater than or equal to 0"),
        ({"a": entry(shape=(2**63, 0))}, "a: shape: 0: Input should be less than"),
        ({"a": entry(shape=(10**400,))}, "a: shape: 0: Input should be less than"),
        ({"a": entry(shape=(True, 2))}, "a: shape: 0: Input should be a valid integer"),
        ({"a": entry(shape=(2.0,))}, "a: shape: 0: Input should be a valid integer"),
        ({"a": entry(shape=("2",))}, "a: shape: 0: Input should be a valid integer"),
        ({"a": entry(shape=(1,) * 8 + (2,))}, "a: shape: List should have at most 8 items"),
        ({"a": entry(shape=(10**8,) * 100_000)}, "a: shape: List should have at most 8 items"),
        ({"a": entry(offsets=(0,))}, "a: data_offsets: 1: Field required"),
        ({"a": entry(offsets=(False, 8))}, "a: data_offsets: 0: Input should be a valid integer"),
        ({"a": entry(offsets=(0, 8.0))}, "a: data_offsets: 1: Input should be a valid integer"),
        ({"a": entry(offsets=(0, "8"))}, "a: data_offsets: 1: Input should be a valid integer"),
        ({"a": entry(offsets=(0, 2**63))}, "a: data_offsets: 1: Input should be less than"),
        ({"a": entry(), "__metadata__": []}, "__metadata__ is not an object of strings"),
        ({"a": entry(), "__metadata__": "x"}, "__metadata__ is not an object of strings"),
        ({"a": entry(), "__metadata__": {"x": 1}}, "__metadata__ is not an object of strings"),
        ({"a": entry(), "__metadata__": {"x": None}}, "__metadata__ is not an object of strings"),
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


@pytest.mark.parametrize(
    "shape",
    [
        (0, 2**63),
        (2**62, 2**62, 0),
        (0, 3037000500, 3037000500),
    ],
)
def test_sizes_beside_a_zero_that_torch_cannot_count_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = write(tmp_path / "t", {"weight": entry(shape=shape, offsets=(0, 0))})
    with pytest.raises(ValueError, match="weight: ") as raised:
        read_tensors(path)
    assert "shape: 1" in str(raised.value) or str(list(shape)) in str(raised.value)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_metadata_that_safetensors_takes(tmp_path: Path, metadata: object) -> None:
    path = write(tmp_path / "t", {"__metadata__": metadata, "a": entry()}, bytes(8))
    assert set(read_tensors(path)) == set(load_file(path)) == {"a"}


@pytest.mark.parametrize(
    "header",
    [
        {f"tensor {i}": entry(dtype="x" * 100, shape=(-1,) * 9) for i in range(2000)},
        {"a" * 100_000: entry(shape=(3,))},
        {"a" * 100_000: entry(shape=("x" * 100_000,))},
        {"a" * 100_000: entry(shape=(0, 3037000500, 3037000500), offsets=(0, 0)), "b": entry()},
        {"__metadata__": {f"{i}": i for i in range(10_000)}},
        {"__metadata__": "x" * 100_000},
        ["x" * 100_000],
    ],
)
def test_a_fault_is_told_in_few_words(tmp_path: Path, header: object) -> None:
    with pytest.raises(ValueError) as raised:
        read_tensors(write(tmp_path / "t", header, bytes(8)))
    assert len(str(raised.value)) < 500


def test_a_header_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t", {"a": entry()}, bytes(8))
    size = path.stat().st_size - 16
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", size)
    assert set(read_tensors(path)) == {"a"}
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", size - 1)
    with pytest.raises(ValueError, match=rf"a header of {size} bytes .*; up to {size - 1} are"):
        read_tensors(path)


@pytest.mark.parametrize("num_bytes", [9, 2**63])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"a header of {num_bytes} bytes in a file of 16"):
        read_tensors(write(tmp_path / "t", {"a": 1}, b"", num_bytes))


@pytest.mark.parametrize("content", [b"", b"\0" * 3])
def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ValueError, match="a header of"):
        read_tensors(tmp_path / "t")
