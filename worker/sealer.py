"""What a job's LoRA is sealed with: the same for the version that it publishes and for its checkpoints on the way."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import PeftModel

from core.adapter_version import CONFIG_FILE, SEAL_FILE, WEIGHTS_FILE, Seal, content_sha256
from core.datasets import Dataset
from core.jobs import Evaluation, Job
from core.prompt import SealedPrompt
from core.training_config import JobConfig


@dataclass(frozen=True)
class Sealer:
    """Seals PEFT folders of one job. `config` is the job's, resolved."""

    job: Job
    config: JobConfig
    dataset: Dataset
    prompt: SealedPrompt
    stop_token_ids: list[int]
    base_fingerprint: str
    base_name: str

    def seal(
        self, folder: Path, metrics: dict[str, Any], evaluation: Evaluation | None = None
    ) -> Seal:
        """Writes dragoman.json into a PEFT folder, which the server may read from now on."""
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            # safetensors writes for the owner alone; the server may be somebody else
            (folder / name).chmod(0o644)
        seal = Seal(
            base_fingerprint=self.base_fingerprint,
            base_model=self.base_name,
            prompt=self.prompt,
            stop_token_ids=self.stop_token_ids,
            source=self.config.source,
            target=self.config.target,
            description=self.config.description,
            dataset_id=self.dataset.id,
            dataset_sha256=self.dataset.sha256,
            dataset_rows=self.dataset.rows,
            job_id=self.job.id,
            created_at=datetime.now(UTC),
            config=self.config.model_dump(mode="json"),
            metrics=metrics,
            evaluation=evaluation,
            content_sha256=content_sha256(folder),
        )
        (folder / SEAL_FILE).write_text(seal.model_dump_json(indent=1), encoding="utf-8")
        return seal


def save_lora(model: PeftModel, folder: Path, base_name: str) -> None:
    """Writes `model`'s LoRA, in the dtype that it has, as a PEFT folder of the base called `base_name`."""
    model.peft_config["default"].base_model_name_or_path = base_name
    # False: PEFT would otherwise ask the hub whether the embeddings were resized.
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)
