"""A volume that fails is recognised through the libraries that write to it, on a real volume that is full."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.volume_fault import volume_fault


def code(error: BaseException) -> str | None:
    fault = volume_fault(error)
    return fault.code if fault else None


def test_numbers() -> None:
    assert code(OSError(errno.ENOSPC, "x")) == "volume_full"
    assert code(OSError(errno.EDQUOT, "x")) == "volume_full"
    assert code(OSError(errno.EROFS, "x")) == "volume_read_only"
    assert code(PermissionError(errno.EACCES, "x", "/secret/path")) == "volume_read_only"
    assert code(OSError(errno.EIO, "x")) == "volume_unavailable"
    assert code(OSError(errno.ENOTDIR, "x")) is None
    assert code(ValueError("os error ")) is None
    fault = volume_fault(PermissionError(errno.EACCES, "x", "/secret/path"))
    assert fault
    assert "secret" not in fault.message


def test_below_another_error() -> None:
    error = RuntimeError("while saving")
    error.__cause__ = OSError(errno.ENOSPC, "x")
    assert code(error) == "volume_full"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with 64 KiB of room."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small volume")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this system does not let us mount")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


BIG = torch.zeros(2**18)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(2**20)),
        lambda path: torch.save({"x": BIG}, path),
        lambda path: save_file({"x": BIG}, path),
    ],
    ids=["plain", "torch", "safetensors"],
)
def test_writers(full: Path, write: Callable[[Path], object]) -> None:
    with pytest.raises(Exception) as caught:
        write(full / "file")
    assert code(caught.value) == "volume_full"
