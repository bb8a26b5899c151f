"""Free memory is that of the tightest limit."""

import os
from pathlib import Path

import psutil
import pytest

from core import memory
from core.memory import free_host_bytes


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups in which this process is in a/b."""
    own = tmp_path / "own"
    own.write_text("1:name=other:/x\n0::/a/b\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_OWN_CGROUP", own)
    (tmp_path / "cgroup/a/b").mkdir(parents=True)
    return tmp_path / "cgroup"


def limit(folder: Path, most: str, used: int, cached: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 7\n")


def test_the_tightest_limit_counts(cgroups: Path) -> None:
    limit(cgroups / "a", "10000", 9000, cached=500)
    limit(cgroups / "a/b", "9000", 1000)
    assert free_host_bytes() == 1500
    limit(cgroups / "a/b", "2000", 1000)
    assert free_host_bytes() == 1000
    limit(cgroups / "a/b", "900", 1000)
    assert free_host_bytes() == 0


def test_without_a_limit_it_is_the_machines(cgroups: Path) -> None:
    limit(cgroups / "a/b", "max", 1000)
    available = psutil.virtual_memory().available
    assert free_host_bytes() == pytest.approx(available, rel=0.2)


def test_without_control_groups_it_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_OWN_CGROUP", Path("/nowhere"))
    available = psutil.virtual_memory().available
    assert free_host_bytes() == pytest.approx(available, rel=0.2)


def test_a_name_need_not_be_utf_8(cgroups: Path) -> None:
    (cgroups.parent / "own").write_bytes(b"0::/a/\xff\n")
    limit(cgroups / "a", "10000", 9000)
    assert free_host_bytes() == 1000
    folder = cgroups / "a" / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    limit(folder, "500", 100)
    assert free_host_bytes() == 400


@pytest.mark.parametrize("name", ["memory.max", "memory.current"])
@pytest.mark.parametrize("content", [b"", b"many", b"\xff", None])
def test_what_cannot_be_read_is_no_limit(cgroups: Path, name: str, content: bytes | None) -> None:
    limit(cgroups / "a", "10000", 9000)
    limit(cgroups / "a/b", "100", 50)
    if content is None:
        (cgroups / "a/b" / name).unlink()
    else:
        (cgroups / "a/b" / name).write_bytes(content)
    assert free_host_bytes() == 1000


@pytest.mark.parametrize("content", [b"", b"inactive_file many", b"\xff", None])
def test_a_limit_counts_without_what_is_cached(cgroups: Path, content: bytes | None) -> None:
    limit(cgroups / "a/b", "10000", 9000, cached=500)
    assert free_host_bytes() == 1500
    if content is None:
        (cgroups / "a/b/memory.stat").unlink()
    else:
        (cgroups / "a/b/memory.stat").write_bytes(content)
    assert free_host_bytes() == 1000
