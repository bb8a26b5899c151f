"""Adapters on the volume: names, immutable versions with their seals, and which version is current.

The folder is the registry: `adapters/{name}/versions/{n}/` appears by one rename, never changes after, and goes by one
rename; `adapters/{name}/current.json` names the current version and is replaced in one step, as is `traffic.json`, a
canary's weights. `adapters/{name}/deleted-{n}` keeps the number of a deleted version from being given out again.
"""

import errno
import json
import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ValidationError

from core.adapter_version import SEAL_FILE, AdapterVersion, Seal
from core.errors import ConflictError, InvalidError, NotFoundError
from core.traffic import Traffic, check_weights
from core.volume import Volume, flush_entries, flush_to_disk

logger = logging.getLogger(__name__)

_CURRENT_FILE = "current.json"
_TRAFFIC_FILE = "traffic.json"
BASE = "base"  # the name under which the untouched base model is asked for

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_MAX_KNOWN = 4096

_Stamp = tuple[int, ...] | None  # another one once a file is replaced; None: no such file


class Adapter(BaseModel):
    """`traffic`: version -> share of the requests that name no version; empty: the current one answers them all."""

    name: str
    versions: list[int]
    current: int | None
    traffic: dict[int, float] = {}


def check_adapter_name(name: str) -> str:
    """Returns `name`. Raises InvalidError unless it is safe as a folder, a URL segment and a label."""
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"adapter name {name[:80]!r} is not valid: 1 to 63 of a-z, 0-9, '_' and '-', "
            "beginning with a letter or digit",
            code="adapter_name_invalid",
        )
    if name == BASE:
        raise InvalidError(
            "adapter name 'base' means the untouched base model; choose another",
            code="adapter_name_invalid",
        )
    return name


class AdapterRegistry:
    """Reads and extends the adapters on a volume. Safe with any number of readers and publishers."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._known: dict[str, tuple[_Stamp, AdapterVersion]] = {}  # by reference

    def all(self) -> list[Adapter]:
        names = (p.name for p in self._volume.adapters.iterdir() if _NAME.fullmatch(p.name))
        adapters = (self._read(name) for name in sorted(names))
        return [a for a in adapters if a.versions]

    def get(self, name: str) -> Adapter:
        """Raises NotFoundError, with the list of what exists."""
        adapter = self._read(name) if _NAME.fullmatch(name) else None
        if adapter is None or not adapter.versions:
            self._raise_not_found(name)
        return adapter

    def resolve(self, ref: str) -> AdapterVersion:
        """`yoda` -> its current version, or one by chance where a canary runs; `yoda@2` -> that one.

        Raises NotFoundError `adapter_not_found` with the list of what exists.
        """
        name, at, number = ref.partition("@")
        if not _NAME.fullmatch(name):
            self._raise_not_found(ref)
        if at:
            if not _NUMBER.fullmatch(number):
                self._raise_not_found(ref)
            return self.version(name, int(number))
        current = self._current(name)
        traffic = self._traffic(name, current)
        if traffic is not None:
            with suppress(NotFoundError):  # deleted meanwhile
                return self.version(name, traffic.draw())
        if current is None:
            self._raise_not_found(ref)
        try:
            return self.version(name, current)
        except NotFoundError:
            if self._current(name) == current:
                raise
        return self.resolve(ref)  # replaced and deleted meanwhile

    def find(self, ref: str) -> AdapterVersion | None:
        """What `resolve` gives, where its seal was read before; else None, as always while a canary runs.

        Which version is current is read every time: it is a line, and a file's time says too little. Older kernels'
        clocks stand still for 4 ms, in which ext4 gives a freed inode out again.
        """
        name, at, _ = ref.partition("@")
        if not at:
            current = self._current(name) if _NAME.fullmatch(name) else None
            if current is None or self._traffic(name, current) is not None:
                return None
            ref = f"{name}@{current}"
        stamp, version = self._known.get(ref, (None, None))
        return version if version and _stamp(version.path / SEAL_FILE) == stamp else None

    def version(self, name: str, number: int) -> AdapterVersion:
        """Raises NotFoundError `adapter_not_found`, or InvalidError `adapter_broken` for an unreadable seal."""
        if not _NAME.fullmatch(name) or not _NUMBER.fullmatch(str(number)):
            self._raise_not_found(f"{name}@{number}")
        ref = f"{name}@{number}"
        folder = self._folder(name) / "versions" / str(number)
        # Taken before the seal is read: one that replaces it meanwhile has another.
        stamp = _stamp(folder / SEAL_FILE)
        known_stamp, known = self._known.get(ref, (None, None))
        if known and stamp == known_stamp:
            return known
        try:
            seal = Seal.model_validate_json((folder / SEAL_FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            self._raise_not_found(ref)
        except ValidationError as error:
            raise InvalidError(
                f"adapter {ref} has an unreadable seal: {error}", code="adapter_broken"
            ) from error
        version = AdapterVersion(name=name, version=number, path=folder, seal=seal)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[ref] = stamp, version
        return version

    def publish(self, name: str, staged: Path) -> AdapterVersion:
        """Makes the complete folder `staged` the next version of `name` by one rename."""
        check_adapter_name(name)
        versions = self._folder(name) / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        flush_to_disk(staged)
        number = 0
        while True:
            number = max(number, self._last_number(name)) + 1
            try:
                staged = staged.rename(versions / str(number))
            except OSError as error:  # another publisher was faster: take the next number
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            # Else others published and deleted that number meanwhile.
            if not self._tombstone(name, number).exists():
                break
        flush_entries(versions)
        flush_entries(versions.parent)
        return self.version(name, number)

    def promote(self, name: str, number: int | None) -> None:
        """Makes version `number` current (None: no version is), in one step, and ends a canary.

        Raises what `version` raises.
        """
        self.get(name) if number is None else self.version(name, number)
        previous = self._current(name)
        self._set_current(name, number)
        if number is not None:
            try:
                self.version(name, number)  # now that it is current, it cannot be deleted any more
            except NotFoundError:
                self._set_current(name, previous)
                raise
        (self._folder(name) / _TRAFFIC_FILE).unlink(missing_ok=True)

    def set_traffic(self, name: str, weights: Mapping[int, float]) -> None:
        """Divides the requests that name no version by `weights`, until a version is made current.

        Empty weights end that. Raises what `version` raises, and InvalidError `traffic_invalid`.
        """
        self.get(name)
        path = self._folder(name) / _TRAFFIC_FILE
        if not weights:
            path.unlink(missing_ok=True)
            return
        for number in weights:
            self.version(name, number)
        traffic = Traffic(beside=self._current(name), weights=check_weights(weights))
        self._volume.write_json(path, traffic.model_dump(mode="json"))

    def delete(self, name: str, number: int) -> None:
        """Removes a version. Requests that it is answering finish; its number is not given out again.

        Raises NotFoundError, or ConflictError `version_in_use` while it is current or has a share of the traffic.
        """
        adapter = self.get(name)
        if number not in adapter.versions:
            self._raise_not_found(f"{name}@{number}")
        self._refuse_in_use(name, number)
        # An empty file in a folder that is there, and a rename: a full volume has room for both.
        tombstone = self._tombstone(name, number)
        tombstone.touch()
        flush_entries(tombstone.parent)
        folder = self._folder(name) / "versions" / str(number)
        try:
            with self._volume.taken_away(folder):
                self._refuse_in_use(name, number)  # made current meanwhile
        except FileNotFoundError:  # another request was faster
            self._raise_not_found(f"{name}@{number}")
        flush_entries(folder.parent)

    def seed(self, box: Path) -> list[str]:
        """Copies adapters that come with the product, as `box/{name}/`, unless the volume has that name already.

        Each appears whole, version and current together, by one rename.
        """
        seeded = []
        for source in sorted(p for p in box.iterdir() if (p / SEAL_FILE).is_file()):
            if self._read(source.name).versions:
                continue
            with self._volume.staged_folder() as staged:
                shutil.copytree(source, staged / "adapter" / "versions" / "1")
                self._volume.write_json(staged / "adapter" / _CURRENT_FILE, {"version": 1})
                flush_to_disk(staged / "adapter")
                try:
                    (staged / "adapter").rename(self._folder(source.name))
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    continue  # another server was faster
            seeded.append(source.name)
        flush_entries(self._volume.adapters)
        return seeded

    def _folder(self, name: str) -> Path:
        return self._volume.adapters / name

    def _read(self, name: str) -> Adapter:
        versions = self._folder(name) / "versions"
        names: list[str] = []
        with suppress(FileNotFoundError, NotADirectoryError):
            names = [p.name for p in versions.iterdir()]
        numbers = sorted(int(n) for n in names if _NUMBER.fullmatch(n))
        current = self._current(name)
        traffic = self._traffic(name, current)
        return Adapter(
            name=name,
            versions=numbers,
            current=current if current in numbers else None,
            traffic=traffic.weights if traffic else {},
        )

    def _last_number(self, name: str) -> int:
        """The highest that was ever given out."""
        # In this order: a version that goes in between has left its tombstone before.
        present = self._read(name).versions
        folder = self._folder(name)
        tombstones = [
            *folder.glob("deleted-*"),
            *folder.glob("deleted/*"),
        ]  # the folder is an older way
        names = (path.name.removeprefix("deleted-") for path in tombstones)
        gone = (int(n) for n in names if _NUMBER.fullmatch(n))
        return max([*present, *gone], default=0)

    def _tombstone(self, name: str, number: int) -> Path:
        return self._folder(name) / f"deleted-{number}"

    def _refuse_in_use(self, name: str, number: int) -> None:
        current = self._current(name)
        traffic = self._traffic(name, current)
        if number == current or (traffic and number in traffic.weights):
            raise ConflictError(
                f"{name}@{number} {'is current' if number == current else 'has traffic'}; "
                "make another version current first",
                code="version_in_use",
            )

    def _set_current(self, name: str, number: int | None) -> None:
        path = self._folder(name) / _CURRENT_FILE
        if number is None:
            path.unlink(missing_ok=True)
        else:
            self._volume.write_json(path, {"version": number})

    def _traffic(self, name: str, current: int | None) -> Traffic | None:
        path = self._folder(name) / _TRAFFIC_FILE
        try:
            traffic = Traffic.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as error:
            logger.warning("%s is unreadable, so no canary runs: %s", path, error)
            return None
        return traffic if traffic.weights and traffic.beside == current else None

    def _current(self, name: str) -> int | None:
        path = self._folder(name) / _CURRENT_FILE
        try:
            return int(json.loads(path.read_bytes())["version"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            logger.warning(
                "%s is unreadable, so adapter %s has no current version: %r", path, name, error
            )
            return None

    def _raise_not_found(self, ref: str) -> NoReturn:
        adapters = self.all()
        name = ref.partition("@")[0]
        versions = next((a.versions for a in adapters if a.name == name), [])
        refs = ", ".join(f"{name}@{number}" for number in versions)
        if ref in {a.name for a in adapters}:
            message = f"adapter {ref!r} has no current version; make one current, or ask for one of: {refs}"
        elif versions:
            message = f"adapter {ref[:80]!r} does not exist; there are: {refs}"
        else:
            names = ", ".join([*(a.name for a in adapters), BASE])
            message = f"adapter {ref[:80]!r} does not exist; there are: {names}"
        raise NotFoundError(message, code="adapter_not_found", adapters=[a.name for a in adapters])


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A copy keeps the time of its content, never the time at which it was made.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
