"""Archives of adapters: what is packed comes out again, and what is made to do harm does not come in."""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from app.adapter_archive import pack, unpack
from core.adapter_version import CONFIG_FILE, SEAL_FILE, WEIGHTS_FILE
from core.errors import InvalidError, TooLargeError

MAX_BYTES = 8 << 20
FILES = {CONFIG_FILE: b"{}", WEIGHTS_FILE: os.urandom(3 << 20), "README.md": b"words"}


def make_zip(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def make_tar(files: dict[str, bytes], *links: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for link in links:
            archive.addfile(link)
    return packed.getvalue()


def unpacked(packed: bytes, folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    unpack(io.BytesIO(packed), folder, max_bytes=MAX_BYTES)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(packed: bytes, folder: Path) -> str:
    with pytest.raises(InvalidError) as raised:
        unpacked(packed, folder)
    assert raised.value.code == "archive_invalid"
    return raised.value.message


@pytest.mark.parametrize("prefix", ["", "yoda/", "a/b/", "./"])
@pytest.mark.parametrize("make", [make_zip, make_tar, lambda f: gzip.compress(make_tar(f))])
def test_every_kind_of_archive(
    make: Callable[[dict[str, bytes]], bytes], prefix: str, tmp_path: Path
) -> None:
    beside = {"optimizer.pt": b"x", "deeper/adapter_model.safetensors": b"y"}
    files = {prefix + name: content for name, content in (FILES | beside).items()}
    assert unpacked(make(files), tmp_path / "out") == FILES


def test_packing_is_repeatable_and_whole(tmp_path: Path) -> None:
    folder = tmp_path / "version"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    first = b"".join(pack(folder))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    pieces = pack(folder)
    for path in folder.iterdir():
        path.unlink()  # the version is deleted while it is sent
    assert b"".join(pieces) == first
    assert unpacked(first, tmp_path / "out") == FILES


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "..\\x", "\\x", "C:/x", "a/b/../../../x"]
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_point_out(
    make: Callable[[dict[str, bytes]], bytes], name: str, tmp_path: Path
) -> None:
    assert "points out of the archive" in refused(make(FILES | {name: b"x"}), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices(kind: bytes, tmp_path: Path) -> None:
    link = tarfile.TarInfo(SEAL_FILE)
    link.type, link.linkname = kind, "/etc/passwd"
    assert "is a link or a device" in refused(make_tar(FILES, link), tmp_path / "out")


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    packed = io.BytesIO(make_zip(FILES))
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo(SEAL_FILE)
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert "is a link or a device" in refused(packed.getvalue(), tmp_path / "out")


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (b"", "cannot be read"),
        (b"PK", "cannot be read"),
        (b"\x1f\x8bjunk", "cannot be read"),
        (b"plain text, no archive at all", "cannot be read"),
        (make_zip(FILES)[:-40], "cannot be read"),
        (gzip.compress(make_tar(FILES))[:1000], "cannot be read"),
        (make_zip({"notes.txt": b"x"}), "0 files adapter_config.json"),
        (make_zip({}), "0 files adapter_config.json"),
        (make_zip({CONFIG_FILE: b"{}", "adapter_model.bin": b"x"}), "safe_serialization"),
        (make_zip({f"{i}/{CONFIG_FILE}": b"{}" for i in range(2)}), "2 files"),
        (make_zip(FILES | {str(i): b"" for i in range(1001)}), "more than 1000 entries"),
        (make_zip(FILES, zipfile.ZIP_LZMA), "neither stored nor deflated"),
        (make_zip(FILES, zipfile.ZIP_BZIP2), "neither stored nor deflated"),
    ],
)
def test_what_is_no_adapter(packed: bytes, words: str, tmp_path: Path) -> None:
    assert words in refused(packed, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_comes_twice(tmp_path: Path) -> None:
    packed = io.BytesIO(make_zip(FILES))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(WEIGHTS_FILE, b"other")
    assert "a file twice" in refused(packed.getvalue(), tmp_path / "out")


def test_a_broken_checksum(tmp_path: Path) -> None:
    packed = bytearray(make_zip(FILES, zipfile.ZIP_STORED))
    packed[1 << 20] ^= 1
    assert "CRC" in refused(bytes(packed), tmp_path / "out")


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_zip({CONFIG_FILE: b"{}", WEIGHTS_FILE: bytes(MAX_BYTES + 1)}),
        lambda: make_zip({CONFIG_FILE: bytes(5 << 20), WEIGHTS_FILE: b"x"}),
        lambda: make_tar({CONFIG_FILE: b"{}", WEIGHTS_FILE: bytes(MAX_BYTES + 1)}),
        lambda: gzip.compress(make_tar({CONFIG_FILE: b"{}", "padding": bytes(3 * MAX_BYTES)})),
        lambda: gzip.compress(make_tar({"x" * (6 << 20): b""})),
    ],
    ids=["zip: weights", "zip: config", "tar: weights", "tar.gz: padding", "tar.gz: 6 MiB of name"],
)
def test_bombs(make: Callable[[], bytes], tmp_path: Path) -> None:
    with pytest.raises(TooLargeError):
        unpacked(make(), tmp_path / "out")


def test_damage_anywhere_is_explained(tmp_path: Path) -> None:
    """One byte after another, in the parts that are parsed: an error that is ours, or the files."""
    small = FILES | {WEIGHTS_FILE: b"weights"}
    for number, packed in enumerate((make_zip(small), gzip.compress(make_tar(small)))):
        for place in range(0, len(packed), 3):
            spoilt = bytearray(packed)
            spoilt[place] ^= 0xFF
            folder = tmp_path / f"{number}-{place}"
            with suppress(InvalidError, TooLargeError):
                assert CONFIG_FILE in unpacked(bytes(spoilt), folder)
