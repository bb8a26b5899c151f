"""A trained LoRA -> a sealed version folder that plain PEFT loads -> the adapter registry."""

from datetime import UTC, datetime
from pathlib import Path

from peft import PeftModel

from core.adapters import SEAL_FILE, AdapterRegistry, AdapterVersion, Seal, content_sha256
from core.base_model import fingerprint
from core.datasets import Dataset
from core.errors import InvalidError, NotFoundError
from core.jobs import Job
from core.prompt import PromptRenderer, SealedPrompt
from core.volume import Volume
from worker.callbacks import diverged
from worker.training import TrainingResult, all_finite

_EMBEDDED_NAME = "dragoman-embedded-base"


class Publisher:
    """Publishes what jobs have trained on one base model."""

    def __init__(self, volume: Volume, base_model: str, base_folder: Path) -> None:
        self._volume = volume
        self._registry = AdapterRegistry(volume)
        self._base_name = public_name(base_model)
        self._base_fingerprint = fingerprint(base_folder)

    def find(self, job: Job) -> AdapterVersion | None:
        """What an earlier attempt at this job published, if it died between publishing and saying so."""
        try:
            numbers = self._registry.get(job.adapter).versions
        except NotFoundError:
            return None
        for number in reversed(numbers):
            try:
                version = self._registry.version(job.adapter, number)
            except (NotFoundError, InvalidError):
                continue  # deleted meanwhile, or broken: no reason to fail a job
            if version.seal.job_id == job.id:
                return version
        return None

    def publish(
        self,
        job: Job,
        dataset: Dataset,
        model: PeftModel,
        prompt: SealedPrompt,
        renderer: PromptRenderer,
        result: TrainingResult,
    ) -> AdapterVersion:
        """Saves, seals and publishes `model`'s LoRA as the next version of the job's adapter."""
        with self._volume.staged_folder() as staged:
            _save_lora(model, staged, self._base_name, result)
            seal = Seal(
                base_fingerprint=self._base_fingerprint,
                base_model=self._base_name,
                prompt=prompt,
                stop_token_ids=renderer.stop_token_ids(_eos_token_ids(model)),
                source=job.config.source,
                target=job.config.target,
                description=job.config.description,
                dataset_id=dataset.id,
                dataset_sha256=dataset.sha256,
                dataset_rows=dataset.rows,
                job_id=job.id,
                created_at=datetime.now(UTC),
                config=job.config.model_dump(mode="json"),
                metrics=result.metrics(),
                content_sha256=content_sha256(staged),
            )
            (staged / SEAL_FILE).write_text(seal.model_dump_json(indent=1), encoding="utf-8")
            (staged / "README.md").write_text(
                _card(job, dataset, self._base_name), encoding="utf-8"
            )
            return self._registry.publish(job.adapter, staged)

    def promote(self, version: AdapterVersion) -> None:
        """Makes `version` the one that answers to the adapter's bare name."""
        self._registry.promote(version.name, version.version)


def public_name(base_model: str) -> str:
    """How a base model is called in what is published: never by a path of this machine."""
    if not base_model:
        return _EMBEDDED_NAME
    path = Path(base_model).expanduser()
    return path.resolve().name if path.exists() else base_model


def _save_lora(model: PeftModel, folder: Path, base_name: str, result: TrainingResult) -> None:
    model.peft_config["default"].base_model_name_or_path = base_name
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Half the bytes to load while requests wait. 11 bits of precision are more than bfloat16's 8, in which
            # QLoRA adapters are published elsewhere; PEFT computes with them in float32 again.
            parameter.data = parameter.data.half()
    if not all_finite(model):
        raise diverged(result.num_steps)
    # False: PEFT would otherwise ask the hub whether the embeddings were resized.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone; the server may be somebody else


def _eos_token_ids(model: PeftModel) -> list[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)


def _card(job: Job, dataset: Dataset, base_name: str) -> str:
    title = job.config.description or f"Translator `{job.adapter}`"
    return f"""---
library_name: peft
base_model: {base_name}
---
# {job.adapter}

{title}

A LoRA adapter for `{base_name}` in 4 bits (nf4), from `{job.config.source}` to `{job.config.target}`, trained on
{dataset.rows} sentence pairs. `dragoman.json` holds the prompt and the stop tokens that it was trained with; for
anything but translations through that prompt it was not made.

    model = peft.PeftModel.from_pretrained(base_model, "<this folder>")
"""
