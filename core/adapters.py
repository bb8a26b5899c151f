"""Adapters on the volume: names, immutable versions with their seals, and which version is current.

The folder is the registry: `adapters/{name}/versions/{n}/` appears by one rename and never changes after;
`adapters/{name}/current.json` names the current version and is replaced in one step.
"""

import errno
import hashlib
import json
import logging
import re
import shutil
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import InvalidError, NotFoundError
from core.jobs import Evaluation
from core.prompt import SealedPrompt
from core.volume import Volume, flush_entries, flush_to_disk

logger = logging.getLogger(__name__)

SEAL_FILE = "dragoman.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_CURRENT_FILE = "current.json"
BASE = "base"  # the name under which the untouched base model is asked for

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Decoding(BaseModel):
    """Decoding defaults, used where a request names none. temperature 0 = greedy."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = 0.0


class Seal(BaseModel):
    """dragoman.json: all that is needed to serve a version as it was trained, and to know where it came from."""

    model_config = ConfigDict(extra="ignore")

    format: int = 1
    base_fingerprint: str
    base_model: str
    prompt: SealedPrompt
    stop_token_ids: list[int]
    decoding: Decoding = Decoding()
    source: str
    target: str
    description: str = ""
    dataset_id: str
    dataset_sha256: str
    dataset_rows: int
    job_id: str
    created_at: datetime
    config: dict[str, Any]
    metrics: dict[str, Any] = {}
    evaluation: Evaluation | None = None
    content_sha256: str


class AdapterVersion(BaseModel):
    """One version: `yoda@2`. `path` is a folder that plain PEFT loads."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    path: Path
    seal: Seal

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class Adapter(BaseModel):
    name: str
    versions: list[int]
    current: int | None


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


def content_sha256(folder: Path) -> str:
    """The hash of what PEFT reads from an adapter folder."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


class AdapterRegistry:
    """Reads and extends the adapters on a volume. Safe with any number of readers and publishers."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

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
        """`yoda` -> its current version, `yoda@2` -> that one.

        Raises NotFoundError `adapter_not_found` with the list of what exists.
        """
        name, at, number = ref.partition("@")
        if not _NAME.fullmatch(name):
            self._raise_not_found(ref)
        if not at:
            current = self._current(name)
            if current is None:
                self._raise_not_found(ref)
            return self.version(name, current)
        if not _NUMBER.fullmatch(number):
            self._raise_not_found(ref)
        return self.version(name, int(number))

    def version(self, name: str, number: int) -> AdapterVersion:
        """Raises NotFoundError `adapter_not_found`, or InvalidError `adapter_broken` for an unreadable seal."""
        if not _NUMBER.fullmatch(str(number)):
            self._raise_not_found(f"{name}@{number}")
        folder = self._folder(name) / "versions" / str(number)
        try:
            seal = _read_seal(folder / SEAL_FILE, (folder / SEAL_FILE).stat().st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            self._raise_not_found(f"{name}@{number}")
        except (ValidationError, json.JSONDecodeError) as error:
            raise InvalidError(
                f"adapter {name}@{number} has an unreadable seal: {error}", code="adapter_broken"
            ) from error
        return AdapterVersion(name=name, version=number, path=folder, seal=seal)

    def publish(self, name: str, staged: Path) -> AdapterVersion:
        """Makes the complete folder `staged` the next version of `name` by one rename."""
        check_adapter_name(name)
        versions = self._folder(name) / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        flush_to_disk(staged)
        number = max(self._read(name).versions, default=0) + 1
        while True:
            try:
                staged.rename(versions / str(number))
                break
            except OSError as error:  # another publisher was faster: take the next number
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                number += 1
        flush_entries(versions)
        flush_entries(versions.parent)
        return self.version(name, number)

    def promote(self, name: str, number: int) -> None:
        """Makes version `number` current, in one step."""
        self.version(name, number)
        self._volume.write_json(self._folder(name) / _CURRENT_FILE, {"version": number})

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
        names = [p.name for p in versions.iterdir()] if versions.is_dir() else []
        numbers = sorted(int(n) for n in names if _NUMBER.fullmatch(n))
        current = self._current(name)
        return Adapter(name=name, versions=numbers, current=current if current in numbers else None)

    def _current(self, name: str) -> int | None:
        path = self._folder(name) / _CURRENT_FILE
        try:
            return int(json.loads(path.read_text())["version"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            logger.warning(
                "%s is unreadable, so adapter %s has no current version: %r", path, name, error
            )
            return None

    def _raise_not_found(self, ref: str) -> NoReturn:
        names = [a.name for a in self.all()]
        raise NotFoundError(
            f"adapter {ref[:80]!r} does not exist; there are: {', '.join([*names, BASE])}",
            code="adapter_not_found",
            adapters=names,
        )


@lru_cache(maxsize=4096)
def _read_seal(path: Path, mtime_ns: int) -> Seal:
    """A version never changes once it is there, so its seal is read once."""
    del mtime_ns  # only part of the key: a deleted version's number may be given out again
    return Seal.model_validate_json(path.read_bytes())
