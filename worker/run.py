"""One attempt at a job, from its dataset to a judged and published version. Imports the whole training stack."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from peft import PeftModel
from redis import RedisError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback

from core.adapter_version import AdapterVersion
from core.adapters import AdapterRegistry
from core.base_model import locate_base_model
from core.datasets import Dataset, DatasetStore
from core.errors import InvalidError, NotFoundError
from core.job_store import Claim, JobStore
from core.jobs import Evaluation, Progress
from core.metrics import Metric, carry_curve
from core.prompt import PromptRenderer, SealedPrompt, seal_prompt
from core.settings import Settings
from core.training_config import JobConfig, TrainingSection
from core.volume import SCRATCH_PREFIX, Volume
from worker.callbacks import JobCallback
from worker.checkpoints import Checkpoint, Checkpointer, CheckpointFolder, restore_trained
from worker.dataset import TrainingData, build_training_data
from worker.evaluation import Rival, ask_current, evaluate, find_current
from worker.generation import Generator, Way
from worker.lease import JobCancelledError, LeaseKeeper
from worker.memory import check_memory, limit_memory
from worker.publisher import Publisher, eos_token_ids, round_lora
from worker.resolve import resolve_config
from worker.sealer import Sealer
from worker.split import Split, split_rows
from worker.training import (
    Precision,
    TrainingResult,
    build_trainer,
    choose_precision,
    load_base,
    run_training,
)
from worker.turns import ServingFirst

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_NO_MORE = "memory allows no more"


def run_job(
    settings: Settings, volume: Volume, store: JobStore, claim: Claim, lease: LeaseKeeper
) -> AdapterVersion:
    """Trains, judges, publishes and, if it is good enough, promotes.

    Raises what `lease.check` raises, and ServiceError.
    """
    base_folder = locate_base_model(settings.base_model)
    publisher = Publisher(volume, settings.base_model, base_folder)
    version = publisher.find(claim.job)
    if version is None:
        version = _Attempt(settings, volume, store, claim, lease, base_folder, publisher).run()
    else:
        logger.info("an earlier attempt had published %s already", version.ref)
        store.move(claim, "running")
    # The seal has the verdict: an attempt that died in between is taken up as it was judged.
    evaluation = version.seal.evaluation
    if evaluation.promoted if evaluation else claim.job.config.evaluation.promote != "never":
        publisher.promote(version)
    if evaluation:
        store.judge(claim, evaluation)
    return version


@dataclass(frozen=True)
class _Material:
    """What is learnt from, what is judged on, and through which prompt."""

    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase
    prompt: SealedPrompt
    renderer: PromptRenderer
    split: Split
    data: TrainingData
    eval_data: TrainingData | None


class _Attempt:
    """The way from a claim to a published version."""

    def __init__(
        self,
        settings: Settings,
        volume: Volume,
        store: JobStore,
        claim: Claim,
        lease: LeaseKeeper,
        base_folder: Path,
        publisher: Publisher,
    ) -> None:
        self._settings = settings
        self._volume = volume
        self._store = store
        self._claim = claim
        self._lease = lease
        self._base_folder = base_folder
        self._publisher = publisher
        self._folder = volume.attempt(claim.job.id, claim.job.attempt)
        self._checkpoints = CheckpointFolder(volume, claim.job.id, publisher.base_fingerprint)

    def run(self) -> AdapterVersion:
        job = self._claim.job
        start = self._checkpoints.newest()
        step = start[1].step if start else 0
        if job.progress.step > step:  # a lost attempt was further
            progress = Progress(step=step, total_steps=job.progress.total_steps)
            self._store.report(self._claim, progress, Metric(restart_after_step=step))
        if start is not None:
            carry_curve(self._volume.attempt(job.id, start[1].curve_of), self._folder)
            logger.info("goes on from the checkpoint of step %d", start[1].step)
        dataset = DatasetStore(self._volume).get(job.dataset_id)
        precision = choose_precision(self._settings, job.config)
        config, warnings = resolve_config(
            job.config,
            base_folder=self._base_folder,
            precision=precision,
            num_rows=dataset.rows,
        )
        job.resolved = config
        self._warn(*warnings)
        material = self._gather(dataset, config)
        self._warn(
            *material.split.warnings,
            *_of_length(material.data, config),
            *_of_held_out(material, config),
        )
        self._lease.check()
        if self._lease.ends_early and start is None:
            raise JobCancelledError(job.id)  # nothing was learnt that could be published
        model, result = self._train(precision, config, material, start)
        self._warn(*_of_learning(result))
        round_lora(model, result)
        sealer = self._sealer(model, config, material)
        way = Way(material.renderer, frozenset(sealer.stop_token_ids))
        evaluation = None
        if material.split.held_out:
            evaluation = self._judge(model, precision, config, material, way)
        version = self._publisher.publish(sealer, model, result, evaluation, self._lease.renew_now)
        logger.info("published %s after %d steps", version.ref, result.num_steps)
        return version

    def _gather(self, dataset: Dataset, config: JobConfig) -> _Material:
        datasets, check = DatasetStore(self._volume), self._lease.check
        tokenizer = AutoTokenizer.from_pretrained(self._base_folder, local_files_only=True)
        prompt = seal_prompt(config.prompt, tokenizer)
        renderer = PromptRenderer(tokenizer, prompt)
        split = split_rows(
            lambda: _checked(datasets.rows(dataset.id), check), config.evaluation.holdout or 0
        )
        data = build_training_data(split.training_rows(), renderer, config.training)
        eval_data = None
        if split.held_out:
            try:
                eval_data = build_training_data(split.held_out, renderer, config.training)
            except InvalidError as error:  # each is too long to train on, but not to answer
                logger.warning("no loss on held-out rows: %s", error.message)
        logger.info("%d rows of dataset %s are tokenised", data.num_rows, dataset.id)
        return _Material(dataset, tokenizer, prompt, renderer, split, data, eval_data)

    def _train(
        self,
        precision: Precision,
        config: JobConfig,
        material: _Material,
        start: tuple[Path, Checkpoint] | None,
    ) -> tuple[PeftModel, TrainingResult]:
        asked = config.training.model_copy()
        path, record = start or (None, None)
        attempt = self._claim.job.attempt
        minutes = self._settings.checkpoint_minutes
        checkpointer = Checkpointer(
            self._checkpoints,
            self._lease,
            attempt=attempt,
            base_fingerprint=self._publisher.base_fingerprint,
            interval_s=None if config.training.save_steps else 60 * minutes,
            start=record,
        )
        callback = JobCallback(
            self._store,
            self._claim,
            self._folder,
            self._lease.check_in_step,
            eval_dataset=material.eval_data.dataset if material.eval_data else None,
            ends_early=lambda: self._lease.ends_early,
            note_batch_size=lambda num_rows: self._note_batch_size(asked, num_rows),
        )
        callbacks: list[TrainerCallback] = [checkpointer, callback]
        if self._settings.device_policy == "wait":
            callbacks.append(ServingFirst(self._store, self._lease))
        check_memory(
            config,
            self._base_folder,
            precision,
            self._settings,
            num_longest=max(material.data.dataset["length"]),
        )
        limit_memory(precision, self._settings)
        model = load_base(self._base_folder, precision, config.quantization)
        logger.info("the base model is loaded on %s in %s", precision.device, precision.dtype)
        with TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=self._folder) as scratch:
            trainer = build_trainer(
                model,
                material.tokenizer,
                material.data,
                config,
                precision=precision,
                output_dir=Path(scratch),
                callbacks=callbacks,
                base_folder=self._base_folder,
                eval_data=material.eval_data,
                find_checkpoint=checkpointer.find_newest,
            )
            checkpointer.trainer = trainer
            checkpointer.sealer = sealer = self._sealer(trainer.model, config, material)
            self._lease.check()
            self._move("running")
            if path and record and record.result:
                restore_trained(trainer.model, path)
                result = TrainingResult(**record.result)
                self._note_batch_size(asked, result.batch_size)
                return trainer.model, result
            result = run_training(trainer, path)
            result = replace(result, seconds=checkpointer.seconds)
            if self._lease.confirm():
                self._checkpoints.add_trained(trainer.model, result, attempt, sealer)
        return trainer.model, result

    def _sealer(self, model: PeftModel, config: JobConfig, material: _Material) -> Sealer:
        return self._publisher.sealer(
            self._claim.job,
            config,
            material.dataset,
            material.prompt,
            material.renderer.stop_token_ids(eos_token_ids(model)),
        )

    def _judge(
        self,
        model: PeftModel,
        precision: Precision,
        config: JobConfig,
        material: _Material,
        way: Way,
    ) -> Evaluation:
        self._move("evaluating")
        base = json.loads((self._base_folder / "config.json").read_text())
        generator = Generator(
            model,
            material.tokenizer,
            precision,
            max_new_tokens=self._settings.max_new_tokens,
            context_length=int(base.get("max_position_embeddings", sys.maxsize)),
            check=self._lease.check,
        )
        rows = material.split.held_out
        registry, adapter = AdapterRegistry(self._volume), self._claim.job.adapter
        rival: Rival | None = None
        try:
            current = find_current(registry, adapter, self._publisher.base_fingerprint)
            if current:
                rival = ask_current(
                    model, generator, material.tokenizer, current, rows, way.stop_token_ids
                )
        except (InvalidError, NotFoundError) as error:
            self._warn(
                f"{adapter}'s current version was not compared with, only the bare base was: "
                f"{error.message}"
            )
        return evaluate(model, generator, rows, way, rival, config)

    def _move(self, status: Literal["running", "evaluating"]) -> None:
        """Raises what interrupts the job; one whose learning is to be published stays `cancelling`."""
        if not self._store.move(self._claim, status):
            self._lease.renew_now()

    def _note_batch_size(self, asked: TrainingSection, num_rows: int) -> None:
        """Writes that batches of `num_rows` rows are used, and a warning if that is not what was `asked` for."""
        job = self._claim.job
        assert job.resolved is not None
        job.resolved.training = used = asked.in_batches_of(num_rows)
        # Of an earlier attempt, or of a beginning that did not fit either.
        job.warnings = [text for text in job.warnings if not text.endswith(_NO_MORE)]
        try:
            self._warn(*_of_batches(asked, used))
        except RedisError as error:  # it is written again with the next warning
            logger.warning("cannot report the batch size: %s", error)

    def _warn(self, *warnings: str) -> None:
        """Writes the config and all warnings so far; an earlier attempt may have found the same."""
        job = self._claim.job
        assert job.resolved is not None
        job.warnings = list(dict.fromkeys([*job.warnings, *warnings]))
        self._store.resolve(self._claim, job.resolved, job.warnings)


def _checked(items: Iterable[_T], check: Callable[[], None]) -> Iterator[_T]:
    for item in items:
        check()
        yield item


def _of_length(data: TrainingData, config: JobConfig) -> Iterator[str]:
    if data.num_too_long:
        yield (
            f"{data.num_too_long} of {data.num_rows + data.num_too_long} rows were left out: longer "
            f"than max_length={config.training.max_length} tokens, the chat template included"
        )


def _of_held_out(material: _Material, config: JobConfig) -> Iterator[str]:
    if material.split.held_out and material.eval_data is None:
        yield (
            f"the {len(material.split.held_out)} held-out rows are all longer than max_length="
            f"{config.training.max_length} tokens: they are judged on, but there is no loss on them and no early stop"
        )


def _of_batches(asked: TrainingSection, used: TrainingSection) -> Iterator[str]:
    if used != asked:
        yield (
            f"training.per_device_train_batch_size: {asked.per_device_train_batch_size} was asked for, "
            f"{used.per_device_train_batch_size} is used, with gradient_accumulation_steps "
            f"{used.gradient_accumulation_steps} in place of {asked.gradient_accumulation_steps}: {_NO_MORE}"
        )


def _of_learning(result: TrainingResult) -> Iterator[str]:
    if not result.has_learnt:
        yield (
            f"the loss did not fall: the last tenth of its curve is on average no lower than {result.first_loss:.2f}, "
            "where it began; a lower config.training.learning_rate may help"
        )
