"""Versions of adapters, for tests of what becomes of them."""

from pathlib import Path

from core.adapter_version import (
    CONFIG_FILE,
    SEAL_FILE,
    WEIGHTS_FILE,
    AdapterVersion,
    content_sha256,
)
from core.adapters import AdapterRegistry
from core.volume import Volume
from tests.seals import make_seal


def stage(folder: Path, job_id: str = "job") -> Path:
    """A complete version folder, but for the weights being weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text("{}")
    (folder / WEIGHTS_FILE).write_bytes(job_id.encode())
    seal = make_seal(job_id=job_id, content_sha256=content_sha256(folder))
    (folder / SEAL_FILE).write_text(seal.model_dump_json())
    return folder


def publish(
    registry: AdapterRegistry, volume: Volume, name: str, job_id: str = "job"
) -> AdapterVersion:
    with volume.staged_folder() as staged:
        return registry.publish(name, stage(staged, job_id))
