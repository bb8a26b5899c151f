"""Adapter folders as archives: packs a version as a zip, unpacks a zip or tar that somebody sent.

An archive's names are only compared, never used as paths, and every size is counted as it is read, not as announced.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import SEEK_END, SEEK_SET, RawIOBase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, BinaryIO, cast

from core.adapter_version import CONFIG_FILE, SEAL_FILE, WEIGHTS_FILE
from core.errors import InvalidError, TooLargeError

_CHUNK = 1 << 20
_MAX_MEMBERS = 1000
_MAX_TEXT_BYTES = 4 << 20
# What is taken out of an archive, with the most bytes of it; None: the archive's own limit. Nothing else is read:
# training leaves optimiser states and pickles beside an adapter.
_MEMBERS: dict[str, int | None] = {
    CONFIG_FILE: _MAX_TEXT_BYTES,
    WEIGHTS_FILE: None,
    SEAL_FILE: _MAX_TEXT_BYTES,
    "README.md": _MAX_TEXT_BYTES,
}
# RuntimeError: a password, or a way of compressing that is not known. ValueError: a number that cannot be.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError),
    *(RuntimeError, ValueError),
)


def pack(folder: Path) -> Iterator[bytes]:
    """The folder's files as a zip, piece by piece: the same bytes each time, and whole even if the folder goes."""
    return _zipped([(path.name, path.open("rb")) for path in sorted(folder.iterdir())])


def _zipped(files: list[tuple[str, BinaryIO]]) -> Iterator[bytes]:
    with ExitStack() as stack:
        sink = _Sink()
        # Stored as they are: weights do not compress.
        archive = stack.enter_context(zipfile.ZipFile(cast("IO[bytes]", sink), "w"))
        for name, file in files:
            stack.enter_context(file)
            info = zipfile.ZipInfo(name)  # dated 1980, as no date is given
            info.create_system, info.external_attr = 3, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                while chunk := file.read(_CHUNK):
                    member.write(chunk)
                    yield sink.take()
        archive.close()
        yield sink.take()


def unpack(file: BinaryIO, folder: Path, *, max_bytes: int) -> None:
    """Copies an adapter's files out of a zip, tar or tar.gz into `folder`; they may lie in a folder of the archive.

    Raises InvalidError `archive_invalid`, or TooLargeError where it holds more than `max_bytes`.
    """
    with _opened(file, max_bytes) as entries:
        chosen = _choose(entries)
        for name, entry in chosen.items():
            limit = min(_MEMBERS[name] or max_bytes, max_bytes)
            _copy(entry.open, folder / name, limit)


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes]]


@contextmanager
def _opened(file: BinaryIO, max_bytes: int) -> Iterator[list[_Entry]]:
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    with _damage_explained(), ExitStack() as stack:
        if magic[:2] == b"PK":
            archive = stack.enter_context(zipfile.ZipFile(file))
            yield [_zip_entry(archive, info) for info in _counted(iter(archive.infolist()))]
        else:
            if magic[:2] == b"\x1f\x8b":
                file = cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb")))
            # Twice the limit: what is not taken has to be read past.
            bounded = cast("BinaryIO", _Bounded(file, 2 * max_bytes))
            tar = stack.enter_context(tarfile.open(fileobj=bounded, mode="r:"))
            yield [_tar_entry(tar, info) for info in _counted(iter(tar))]


@contextmanager
def _damage_explained() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise _invalid(f"it cannot be read as a zip, tar or tar.gz: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the volume's, not the archive's
        raise _invalid(f"it cannot be read: {error}") from error


def _counted(infos: Iterator[Any]) -> Iterator[Any]:
    for number, info in enumerate(infos, 1):
        if number > _MAX_MEMBERS:
            raise _invalid(f"it holds more than {_MAX_MEMBERS} entries")
        yield info


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _invalid(f"{info.filename[:200]!r} is neither stored nor deflated")
    kind = stat.S_IFMT(info.external_attr >> 16)
    is_folder = info.is_dir()
    is_file = not is_folder and kind in (0, stat.S_IFREG)
    return _Entry(info.filename, is_file, is_folder, lambda: archive.open(info))


def _tar_entry(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Entry:
    def opened() -> IO[bytes]:
        return cast("IO[bytes]", archive.extractfile(info))

    return _Entry(info.name, info.isreg(), info.isdir(), opened)


def _choose(entries: list[_Entry]) -> dict[str, _Entry]:
    """The adapter's own files. Raises InvalidError where anything in the archive is not what a folder may hold."""
    for entry in entries:
        path = PureWindowsPath(entry.name)  # which knows both kinds of slash, and drives
        if path.drive or path.root or ".." in path.parts:
            raise _invalid(f"{entry.name[:200]!r} points out of the archive")
        if not entry.is_file and not entry.is_folder:
            raise _invalid(f"{entry.name[:200]!r} is a link or a device; only files are accepted")
    files = [(PurePosixPath(entry.name), entry) for entry in entries if entry.is_file]
    homes = [path.parent for path, _ in files if path.name == CONFIG_FILE]
    if len(homes) != 1:
        raise _invalid(f"it holds {len(homes)} files {CONFIG_FILE}; exactly 1 is accepted")
    inside = [(path.name, entry) for path, entry in files if path.parent == homes[0]]
    chosen = {name: entry for name, entry in inside if name in _MEMBERS}
    if WEIGHTS_FILE not in chosen:
        found = ", ".join(sorted(name for name, _ in inside)[:20])
        raise _invalid(
            f"it has no {WEIGHTS_FILE} beside {CONFIG_FILE}, only: {found}; save the adapter with "
            "safe_serialization=True"
        )
    if len(chosen) != sum(name in _MEMBERS for name, _ in inside):
        raise _invalid("it holds a file twice")
    return chosen


def _copy(open_entry: Callable[[], IO[bytes]], target: Path, limit: int) -> None:
    num_bytes = 0
    with open_entry() as source, target.open("wb") as copy:
        while chunk := source.read(_CHUNK):
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise TooLargeError(
                    f"the archive's {target.name} has more than the {limit:,} bytes accepted"
                )
            copy.write(chunk)


def _invalid(reason: str) -> InvalidError:
    return InvalidError(f"the archive is not accepted: {reason}", code="archive_invalid")


class _Sink(RawIOBase):
    """Where the zip is written to; what is taken is gone."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class _Bounded(RawIOBase):
    """Reads and seeks up to a limit. A gzip may announce and yield a thousand times its size."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if whence == SEEK_END or offset > self._max_bytes:
            raise self._too_large()
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_TEXT_BYTES or self._file.tell() + size > self._max_bytes:
            raise self._too_large()
        return self._file.read(size)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the archive holds more than the {self._max_bytes:,} bytes accepted")
