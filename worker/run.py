"""One attempt at a job, from its dataset to a published version. Imports the whole training stack."""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from transformers import AutoTokenizer

from core.adapters import AdapterVersion
from core.base_model import locate_base_model
from core.datasets import DatasetStore
from core.job_store import Claim, JobStore
from core.jobs import Progress
from core.prompt import PromptRenderer, seal_prompt
from core.settings import Settings
from core.volume import Volume
from worker.callbacks import JobCallback
from worker.dataset import TrainingData, build_training_data
from worker.lease import JobCancelledError, LeaseKeeper
from worker.publisher import Publisher
from worker.training import build_trainer, choose_precision, load_base, run_training

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def run_job(
    settings: Settings, volume: Volume, store: JobStore, claim: Claim, lease: LeaseKeeper
) -> AdapterVersion:
    """Trains, publishes and promotes. Raises what `lease.check` raises, and ServiceError."""
    job, config = claim.job, claim.job.config
    base_folder = locate_base_model(settings.base_model)
    publisher = Publisher(volume, settings.base_model, base_folder)
    published = publisher.find(job)
    if published is not None:
        logger.info("an earlier attempt had published %s already", published.ref)
        publisher.promote(published)
        return published

    datasets = DatasetStore(volume)
    dataset = datasets.get(job.dataset_id)
    tokenizer = AutoTokenizer.from_pretrained(base_folder, local_files_only=True)
    prompt = seal_prompt(config.prompt, tokenizer)
    renderer = PromptRenderer(tokenizer, prompt)
    rows = _checked(datasets.rows(dataset.id), lease.check)
    max_length = min(config.training.max_length, _context_length(base_folder))
    data = build_training_data(rows, renderer, max_length)
    warnings = _warn(data, max_length)
    logger.info("%d rows of dataset %s are tokenised", data.num_rows, dataset.id)
    lease.check()

    precision = choose_precision(settings)
    attempt = volume.attempt(job.id, job.attempt)
    output_dir = attempt / "trainer"
    model = load_base(base_folder, precision)
    logger.info("the base model is loaded on %s in %s", precision.device, precision.dtype)
    trainer = build_trainer(
        model,
        tokenizer,
        data,
        config,
        precision=precision,
        output_dir=output_dir,
        callbacks=[JobCallback(store, claim, attempt, lease.check)],
    )
    lease.check()
    store.report(claim, Progress(), warnings=[*job.warnings, *warnings])
    if not store.move(claim, "running"):
        raise JobCancelledError(job.id)
    result = run_training(trainer)
    shutil.rmtree(output_dir, ignore_errors=True)

    lease.renew_now()
    version = publisher.publish(job, dataset, trainer.model, prompt, renderer, result)
    publisher.promote(version)
    logger.info("published %s after %d steps", version.ref, result.num_steps)
    return version


def _context_length(base_folder: Path) -> int:
    """The most tokens that the base model can read at once."""
    config = json.loads((base_folder / "config.json").read_text())
    return int(config.get("max_position_embeddings", sys.maxsize))


def _checked(items: Iterable[_T], check: Callable[[], None]) -> Iterator[_T]:
    for item in items:
        check()
        yield item


def _warn(data: TrainingData, max_length: int) -> list[str]:
    if not data.num_too_long:
        return []
    return [
        f"{data.num_too_long} of {data.num_rows + data.num_too_long} rows were left out: longer "
        f"than max_length={max_length} tokens, the chat template included"
    ]
