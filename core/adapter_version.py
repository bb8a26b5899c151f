"""One version of an adapter: the folder that plain PEFT loads, and the seal beside the weights."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from core.jobs import Evaluation
from core.prompt import SealedPrompt

SEAL_FILE = "dragoman.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
JOB_PREFIX = "job:"  # before a job's id: its checkpoints; no adapter's name holds a colon


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
    """One version: `yoda@2`, or a checkpoint of a job: `job:{id}@{step}`. `path` is a folder that plain PEFT loads."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    path: Path
    seal: Seal

    @classmethod
    def of_job(cls, job_id: str, step: int, path: Path, seal: Seal) -> "AdapterVersion":
        """A job's checkpoint, which may go at any time; a later one takes its place."""
        return cls(name=f"{JOB_PREFIX}{job_id}", version=step, path=path, seal=seal)

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def is_checkpoint(self) -> bool:
        return self.name.startswith(JOB_PREFIX)


def content_sha256(folder: Path) -> str:
    """The hash of what PEFT reads from an adapter folder."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
