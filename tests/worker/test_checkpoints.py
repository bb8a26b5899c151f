"""A run that was interrupted goes on as if nothing had happened; what is not whole is not used."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from core.adapter_version import content_sha256
from core.checkpoints import find_checkpoints
from core.datasets import DatasetStore, Row
from core.jobs import Job
from core.prompt import seal_prompt
from core.volume import Volume
from tests.worker.conftest import ROWS, Jobs
from tests.worker.trainers import CPU, OutOfMemory, losses_of
from worker.checkpoints import Checkpoint, Checkpointer, CheckpointFolder, restore_trained
from worker.lease import LeaseKeeper, StopRequest, WorkerStoppingError
from worker.sealer import Sealer
from worker.training import TrainingResult, load_base, run_training

Build = Callable[..., SFTTrainer]

TRAINING: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
}
BASE = "fingerprint"


class _StopAt(TrainerCallback):  # type: ignore[misc]
    """Asks the worker to exit in the midst of a step."""

    def __init__(self, step: int, stop: StopRequest) -> None:
        self._step = step
        self._stop = stop

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == self._step - 1:
            self._stop.make()


def sealer_of(trainer: SFTTrainer, job: Job, volume: Volume) -> Sealer:
    return Sealer(
        job=job,
        config=job.config,
        dataset=DatasetStore(volume).get(job.dataset_id),
        prompt=seal_prompt(job.config.prompt, trainer.processing_class),
        stop_token_ids=[3],
        base_fingerprint=BASE,
        base_name="a-base",
    )


class Runs:
    """Attempts at one job, each in a folder of its own, with a lease of its own."""

    def __init__(self, jobs: Jobs, build: Build, root: Path, **config: Any) -> None:
        self._jobs, self._build, self._root, self._config = jobs, build, root, config
        self.job = jobs.create()
        self.folder = CheckpointFolder(jobs.volume, self.job.id, BASE)
        self._num_attempts = 0

    def attempt(
        self,
        stop_at: int | None = None,
        *,
        interval_s: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> tuple[SFTTrainer, TrainingResult | None]:
        """The result is None of a run that was stopped at `stop_at`."""
        self._num_attempts += 1
        claim = self._jobs.store.claim(self.job.id)
        assert claim
        (self._jobs.volume.jobs / self.job.id).mkdir(exist_ok=True)
        scratch = self._root / f"attempt-{self._num_attempts}" / "checkpoints"
        scratch.mkdir(parents=True)
        stop = StopRequest()
        start = self.folder.newest()
        with LeaseKeeper(self._jobs.store, claim, stop, lease_s=60, grace_s=600) as lease:
            checkpointer = Checkpointer(
                self.folder,
                lease,
                attempt=claim.job.attempt,
                base_fingerprint=BASE,
                interval_s=interval_s,
                start=start[1] if start else None,
            )
            stopper = [_StopAt(stop_at, stop)] if stop_at else []
            trainer = self._build(callbacks=[checkpointer, *stopper, *callbacks], **self._config)
            trainer.args.output_dir = str(scratch)
            trainer._find_checkpoint = checkpointer.find_newest
            checkpointer.trainer = trainer
            checkpointer.sealer = sealer_of(trainer, claim.job, self._jobs.volume)
            try:
                result = run_training(trainer, start[0] if start else None)
            except WorkerStoppingError:
                result = None
        self._jobs.store.release(claim)
        return trainer, result

    def forget(self) -> None:
        self._jobs.volume.remove_folder(self.folder.path)

    def steps(self) -> list[int]:
        return sorted(int(p.name.split("-")[1]) for p in self.folder.path.glob("step-*"))


@pytest.fixture
def runs(jobs: Jobs, build: Build, tmp_path: Path) -> Callable[..., Runs]:
    return lambda **config: Runs(jobs, build, tmp_path, **config)


def weights(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "config",
    [
        {
            "eval_rows": ROWS[:8],
            "lora": {"lora_dropout": 0.2},
            "training": {
                "eval_steps": 3,
                "logging_steps": 3,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 4,
            },
        },
        {
            "training": {"packing": True, "max_length": 40},
            "lora": {"lora_dropout": 0.2, "init_lora_weights": "loftq"},
        },
        {"training": {"optim": "adamw_8bit"}, "lora": {"r": 64}},
    ],
    ids=["accumulation", "packing", "8-bit moments"],
)
def test_interrupted_run_equals_a_whole_one(
    runs: Callable[..., Runs], config: dict[str, Any]
) -> None:
    """Loss for loss, and weight for weight; stopped at the end of an epoch, and in the midst of one."""
    config = config | {"training": TRAINING | config.get("training", {})}
    attempts = runs(**config)
    whole, expected = attempts.attempt()
    assert expected
    for stop_at in (expected.num_steps // 2, expected.num_steps - 2):
        _, nothing = attempts.attempt(stop_at)
        assert nothing is None
        assert attempts.folder.newest()[1].step == stop_at  # type: ignore[index]
    trainer, result = attempts.attempt()
    assert result
    for key in ("loss", "learning_rate", "grad_norm", "eval_loss", "step"):
        assert losses_of(trainer, key) == losses_of(whole, key)
    assert result.num_tokens == expected.num_tokens
    assert result.train_loss == pytest.approx(expected.train_loss)
    assert result.first_loss == expected.first_loss
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(trainer)[name])


@pytest.mark.parametrize(
    "training",
    [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 2},
        {"packing": True, "max_length": 40, "per_device_train_batch_size": 4},
    ],
    ids=["rows", "accumulation", "packing"],
)
def test_out_of_memory_goes_on_from_the_newest(
    runs: Callable[..., Runs], training: dict[str, Any]
) -> None:
    """Twice, in the midst of an epoch: nothing is lost but the steps since, and the curve is an undisturbed run's."""
    training = TRAINING | {"num_train_epochs": 3, "save_steps": 3, "eval_steps": 4} | training
    attempts = runs(eval_rows=ROWS[:8], training=training | {"auto_find_batch_size": True})
    whole, expected = attempts.attempt()
    assert expected
    attempts.forget()
    size = training["per_device_train_batch_size"]
    late, later = OutOfMemory(size // 2, after_step=5), OutOfMemory(size // 4, after_step=8)
    trainer, result = attempts.attempt(callbacks=[late, later])
    assert result
    assert late.began_at == [0, 3, 6]
    assert result.batch_size == size // 4
    assert trainer.args.gradient_accumulation_steps == 4 * whole.args.gradient_accumulation_steps
    assert (result.num_steps, result.num_tokens) == (expected.num_steps, expected.num_tokens)
    assert losses_of(trainer, "step") == losses_of(whole, "step")
    for key in ("loss", "learning_rate", "eval_loss"):
        assert losses_of(trainer, key) == pytest.approx(losses_of(whole, key), rel=1e-4)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(trainer)[name], weight, rtol=1e-2, atol=1e-4)


def test_out_of_memory_and_the_only_checkpoint_is_torn(runs: Callable[..., Runs]) -> None:
    """Then it begins anew, as if there were none."""
    training = TRAINING | {"save_steps": 2, "max_steps": 4, "auto_find_batch_size": True}
    attempts = runs(training=training)
    whole, _ = attempts.attempt()
    attempts.forget()

    class Torn(OutOfMemory):
        def on_save(self, *_: Any, **__: Any) -> None:
            (attempts.folder.path / "step-2" / "optimizer.pt").write_bytes(b"torn")

    memory = Torn(4, after_step=3)
    trainer, result = attempts.attempt(callbacks=[memory])
    assert result
    assert memory.began_at == [0, 0]
    assert losses_of(trainer) == pytest.approx(losses_of(whole), rel=1e-4)


def test_early_stopping_goes_on(runs: Callable[..., Runs]) -> None:
    """Its patience and its best checkpoint are those of the whole run."""
    unlike = [Row(prompt=row.prompt, completion="7, 7, 7 and 7 again!") for row in ROWS[:8]]
    training = TRAINING | {
        "num_train_epochs": 4,
        "eval_steps": 2,
        "early_stopping_patience": 2,
        "learning_rate": 0.3,
    }
    attempts = runs(eval_rows=unlike, training=training)
    whole, expected = attempts.attempt()
    assert expected
    attempts.forget()
    best = whole.state.best_global_step
    assert best + 4 == expected.num_steps < 16
    attempts.attempt(best + 3)
    assert best in attempts.steps()
    trainer, result = attempts.attempt()
    assert result
    assert (trainer.state.best_global_step, result.num_steps) == (best, expected.num_steps)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(trainer)[name])


def test_by_time_and_pruned(runs: Callable[..., Runs]) -> None:
    attempts = runs(training=TRAINING | {"max_steps": 6})
    attempts.attempt(interval_s=0)
    # None of the last step: there is nothing left to go on with.
    assert attempts.steps() == [4, 5]


def test_by_steps(runs: Callable[..., Runs]) -> None:
    attempts = runs(training=TRAINING | {"max_steps": 7, "save_steps": 3})
    attempts.attempt()
    assert attempts.steps() == [3, 6]


def test_each_is_sealed_as_a_version_is(
    runs: Callable[..., Runs], jobs: Jobs, bases: dict[str, Path]
) -> None:
    """So the server can translate with it, as plain PEFT can."""
    attempts = runs(training=TRAINING | {"max_steps": 5, "save_steps": 2})
    trainer, result = attempts.attempt()
    assert result
    sealer = sealer_of(trainer, attempts.job, jobs.volume)
    attempts.folder.add_trained(trainer.model, result, 1, sealer)
    found = find_checkpoints(jobs.volume, attempts.job.id)
    assert [c.version for c in found] == [5, 4, 2]
    for checkpoint in found:
        seal = checkpoint.seal
        assert (seal.job_id, seal.base_fingerprint) == (attempts.job.id, BASE)
        assert (seal.prompt, seal.stop_token_ids) == (sealer.prompt, [3])
        assert seal.config == attempts.job.config.model_dump(mode="json")
        assert seal.metrics["steps"] == checkpoint.version
        assert seal.content_sha256 == content_sha256(checkpoint.path)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (checkpoint.path / name).stat().st_mode & 0o044 == 0o044, "others cannot read it"
    base = load_base(bases["phi3"], CPU)
    loaded = PeftModel.from_pretrained(base, found[0].path)
    expected = weights(trainer)
    assert expected
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, expected.pop(name))
    assert not expected


@pytest.fixture
def folder(volume: Volume) -> CheckpointFolder:
    (volume.jobs / "a").mkdir()
    return CheckpointFolder(volume, "a", BASE)


def written(volume: Volume, folder: CheckpointFolder, step: int, base: str = BASE) -> Path:
    with volume.staged_folder() as staged:
        (staged / "optimizer.pt").write_bytes(b"x" * step)
        record = Checkpoint(step=step, curve_of=1, base_fingerprint=base)
        return folder.add(staged, record)


def test_newest_whole_one(volume: Volume, folder: CheckpointFolder) -> None:
    assert folder.newest() is None
    for step in (9, 10, 11):
        written(volume, folder, step)
    (folder.path / "step-11" / "optimizer.pt").write_bytes(b"torn")
    (folder.path / "step-junk").mkdir()
    (folder.path / "step-12").mkdir()  # no record
    found = folder.newest()
    assert found
    assert found[1].step == 10
    (folder.path / "step-10" / "checkpoint.json").write_text("{")
    assert folder.newest()[1].step == 9  # type: ignore[index]
    # A damaged one is replaced, a whole one stays.
    written(volume, folder, 10)
    assert folder.newest()[1].step == 10  # type: ignore[index]


def test_of_another_base_model(volume: Volume, folder: CheckpointFolder) -> None:
    written(volume, folder, 5, base="another")
    assert folder.newest() is None
    written(volume, folder, 5)
    assert folder.newest()


def test_what_cannot_be_gone_on_from_takes_nobodys_place(
    volume: Volume, folder: CheckpointFolder
) -> None:
    """A job that was paused, and begins anew on another base model: its old checkpoints are of later steps."""
    for step in (500, 510):
        written(volume, folder, step, base="another")
    for step in (2, 5, 7, 9):
        written(volume, folder, step)
        folder.prune([2])
    assert sorted(p.name for p in folder.path.iterdir()) == ["step-2", "step-7", "step-9"]


def test_what_was_trained_comes_first(
    jobs: Jobs, volume: Volume, folder: CheckpointFolder, build: Build
) -> None:
    written(volume, folder, 5)
    trainer = build(training={"max_steps": 2})
    result = run_training(trainer)
    folder.add_trained(trainer.model, result, 1, sealer_of(trainer, jobs.create(), volume))
    expected = weights(trainer)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    found = folder.newest()
    assert found
    path, record = found
    assert record.result
    assert TrainingResult(**record.result) == result
    restore_trained(trainer.model, path)
    for name, weight in weights(trainer).items():
        assert torch.equal(weight, expected[name])
    shutil.rmtree(path)
    assert folder.newest()[1].step == 5  # type: ignore[index]
