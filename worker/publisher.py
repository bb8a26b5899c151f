"""A trained LoRA -> a sealed version folder that plain PEFT loads -> the adapter registry."""

import errno
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from peft import PeftModel

from core.adapter_version import AdapterVersion, Seal
from core.adapters import AdapterRegistry
from core.base_model import fingerprint
from core.datasets import Dataset
from core.errors import InvalidError, NotFoundError
from core.jobs import Evaluation, Job
from core.prompt import SealedPrompt
from core.training_config import JobConfig
from core.volume import Volume
from worker.callbacks import diverged
from worker.sealer import Sealer, save_lora
from worker.training import TrainingResult, all_finite

_EMBEDDED_NAME = "dragoman-embedded-base"
_READY = "version"  # in a job's folder: sealed, and about to be published


class Publisher:
    """Publishes what jobs have trained on one base model."""

    def __init__(self, volume: Volume, base_model: str, base_folder: Path) -> None:
        self._volume = volume
        self._registry = AdapterRegistry(volume)
        self._base_name = public_name(base_model)
        self.base_fingerprint = fingerprint(base_folder)

    def find(self, job: Job) -> AdapterVersion | None:
        """What an earlier attempt at this job published, or was about to, when it died."""
        return self._find(job) or (self._publish_ready(job) if self._ready(job).exists() else None)

    def _find(self, job: Job) -> AdapterVersion | None:
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

    def sealer(
        self,
        job: Job,
        config: JobConfig,
        dataset: Dataset,
        prompt: SealedPrompt,
        stop_token_ids: Collection[int],
    ) -> Sealer:
        """Seals what `job` learns on this base model. `config` is the job's, resolved."""
        return Sealer(
            job=job,
            config=config,
            dataset=dataset,
            prompt=prompt,
            stop_token_ids=sorted(stop_token_ids),
            base_fingerprint=self.base_fingerprint,
            base_name=self._base_name,
        )

    def publish(
        self,
        sealer: Sealer,
        model: PeftModel,
        result: TrainingResult,
        evaluation: Evaluation | None,
        check: Callable[[], None],
    ) -> AdapterVersion:
        """Saves, seals and publishes `model`'s LoRA as the next version of the job's adapter.

        `check` raises if the job is not this worker's any more. The seal keeps the verdict, so that whoever finds the version can act on it.
        """
        job = sealer.job
        with self._volume.staged_folder() as staged:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.half()
            save_lora(model, staged, self._base_name)
            seal = sealer.seal(staged, result.metrics(), evaluation)
            (staged / "README.md").write_text(adapter_card(job.adapter, seal), encoding="utf-8")
            check()
            # A job has one such place, and a folder is moved once: a worker that was given up, and wakes here, finds
            # that another one's version is in it, or was published from it.
            try:
                staged.rename(self._ready(job))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        return self._publish_ready(job)

    def _ready(self, job: Job) -> Path:
        return self._volume.jobs / job.id / _READY

    def _publish_ready(self, job: Job) -> AdapterVersion:
        ready = self._ready(job)
        version = self._find(job)
        if version is not None:
            shutil.rmtree(ready, ignore_errors=True)
            return version
        try:
            return self._registry.publish(job.adapter, ready)
        except FileNotFoundError:
            version = self._find(job)
            if version is None:
                raise
            return version

    def promote(self, version: AdapterVersion) -> None:
        """Makes `version` current, unless a later one is: another job's, while this attempt took up a dead one's work."""
        if (self._registry.get(version.name).current or 0) < version.version:
            self._registry.promote(version.name, version.version)


def public_name(base_model: str) -> str:
    """How a base model is called in what is published: never by a path of this machine."""
    if not base_model:
        return _EMBEDDED_NAME
    path = Path(base_model).expanduser()
    return path.resolve().name if path.exists() else base_model


def eos_token_ids(model: PeftModel) -> list[int]:
    """What ends an answer of the base model."""
    eos = model.generation_config.eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)


def round_lora(model: PeftModel, result: TrainingResult) -> None:
    """Gives the trained weights the values that are published, those of float16, in the dtype that they have.

    Half the bytes to load while requests wait. 11 bits of precision are more than bfloat16's 8, in which QLoRA adapters
    are published elsewhere. Raises InvalidError `training_diverged` where float16 is too narrow.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half().to(parameter.dtype)
    if not all_finite(model):
        raise diverged(result.num_steps)


def adapter_card(name: str, seal: Seal) -> str:
    """README.md of a version, as the Hugging Face hub shows it."""
    title = seal.description or f"Translator `{name}`"
    return f"""---
library_name: peft
base_model: {seal.base_model}
---
# {name}

{title}

A LoRA adapter for `{seal.base_model}` in 4 bits (nf4), from `{seal.source}` to `{seal.target}`, trained on a dataset of
{seal.dataset_rows} rows. `dragoman.json` holds the prompt and the stop tokens that it was trained with; for
anything but translations through that prompt it was not made.

    model = peft.PeftModel.from_pretrained(base_model, "<this folder>")
{_scores_table(seal.evaluation)}"""


def _scores_table(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    rows = {
        "bare base": evaluation.base,
        evaluation.against: evaluation.current,
        "this version": evaluation.candidate,
    }
    table = "\n".join(
        f"| {name} | {scores.bleu:.1f} | {scores.chrf:.1f} |"
        for name, scores in rows.items()
        if scores
    )
    signatures = "\n".join(f"- {name}: `{sig}`" for name, sig in evaluation.signatures.items())
    return f"""
## Evaluation

On {evaluation.rows} rows of the dataset that it was not trained on. {evaluation.reason}

| | BLEU | chrF++ |
|---|---|---|
{table}

{signatures}
"""
