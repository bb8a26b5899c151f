"""One attempt at a job, from its dataset to a published version. Imports the whole training stack."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTTrainer

from core.adapters import AdapterVersion
from core.base_model import locate_base_model
from core.datasets import Dataset, DatasetStore
from core.job_store import Claim, JobStore
from core.jobs import Job
from core.prompt import PromptRenderer, SealedPrompt, seal_prompt
from core.settings import Settings
from core.volume import Volume
from worker.callbacks import JobCallback
from worker.dataset import TrainingData, build_training_data
from worker.lease import JobCancelledError, LeaseKeeper
from worker.publisher import Publisher
from worker.resolve import resolve_config
from worker.training import (
    Precision,
    TrainingResult,
    build_trainer,
    choose_precision,
    load_base,
    run_training,
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Material:
    """What is learnt from, and through which prompt."""

    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase
    prompt: SealedPrompt
    renderer: PromptRenderer
    data: TrainingData
    max_length: int


def run_job(
    settings: Settings, volume: Volume, store: JobStore, claim: Claim, lease: LeaseKeeper
) -> AdapterVersion:
    """Trains, publishes and promotes. Raises what `lease.check` raises, and ServiceError."""
    base_folder = locate_base_model(settings.base_model)
    dataset = DatasetStore(volume).get(claim.job.dataset_id)
    precision = choose_precision(settings, claim.job.config)
    claim.job.config, warnings = resolve_config(
        claim.job.config, base_folder=base_folder, precision=precision, num_rows=dataset.rows
    )
    claim.job.warnings = list(dict.fromkeys([*claim.job.warnings, *warnings]))
    job = claim.job
    publisher = Publisher(volume, settings.base_model, base_folder)
    version = publisher.find(job)
    if version is not None:
        logger.info("an earlier attempt had published %s already", version.ref)
        store.move(claim, "running")
    else:
        material = _gather(DatasetStore(volume), job, base_folder, lease.check)
        lease.check()
        trainer, result = _train(precision, volume, store, claim, lease, base_folder, material)
        lease.renew_now()
        version = publisher.publish(
            job, material.dataset, trainer.model, material.prompt, material.renderer, result
        )
        logger.info("published %s after %d steps", version.ref, result.num_steps)
    publisher.promote(version)
    return version


def _gather(
    datasets: DatasetStore, job: Job, base_folder: Path, check: Callable[[], None]
) -> _Material:
    dataset = datasets.get(job.dataset_id)
    tokenizer = AutoTokenizer.from_pretrained(base_folder, local_files_only=True)
    prompt = seal_prompt(job.config.prompt, tokenizer)
    renderer = PromptRenderer(tokenizer, prompt)
    max_length = job.config.training.max_length
    rows = _checked(datasets.rows(dataset.id), check)
    data = build_training_data(rows, renderer, job.config.training)
    logger.info("%d rows of dataset %s are tokenised", data.num_rows, dataset.id)
    return _Material(dataset, tokenizer, prompt, renderer, data, max_length)


def _train(
    precision: Precision,
    volume: Volume,
    store: JobStore,
    claim: Claim,
    lease: LeaseKeeper,
    base_folder: Path,
    material: _Material,
) -> tuple[SFTTrainer, TrainingResult]:
    attempt = volume.attempt(claim.job.id, claim.job.attempt)
    callback = JobCallback(store, claim, attempt, lease.check)
    model = load_base(base_folder, precision, claim.job.config.quantization)
    logger.info("the base model is loaded on %s in %s", precision.device, precision.dtype)
    with TemporaryDirectory(dir=attempt) as scratch:
        trainer = build_trainer(
            model,
            material.tokenizer,
            material.data,
            claim.job.config,
            precision=precision,
            output_dir=Path(scratch),
            callbacks=[callback],
            base_folder=base_folder,
        )
        lease.check()
        if not store.move(claim, "running"):
            raise JobCancelledError(claim.job.id)
        result = run_training(trainer)
    warnings = [*claim.job.warnings, *_warnings(material, result)]
    if warnings:  # an earlier attempt may have found the same
        store.report(claim, callback.progress, warnings=list(dict.fromkeys(warnings)))
    return trainer, result


def _checked(items: Iterable[_T], check: Callable[[], None]) -> Iterator[_T]:
    for item in items:
        check()
        yield item


def _warnings(material: _Material, result: TrainingResult) -> Iterator[str]:
    data = material.data
    if data.num_too_long:
        yield (
            f"{data.num_too_long} of {data.num_rows + data.num_too_long} rows were left out: longer "
            f"than max_length={material.max_length} tokens, the chat template included"
        )
    if not result.has_learnt:
        yield (
            f"the loss did not fall ({result.first_loss:.2f} at first, {result.final_loss:.2f} at "
            "last): a lower config.training.learning_rate may help"
        )
