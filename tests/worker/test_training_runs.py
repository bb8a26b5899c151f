"""What a run does besides learning: evaluations, checkpoints, early stops, retries, reports; and both recipes as a whole."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from core.datasets import Row
from core.errors import ServiceError
from tests.worker.conftest import ROWS
from tests.worker.trainers import OutOfMemory, first_batch, losses_of
from worker.integrations import reporting_callbacks
from worker.training import run_training, training_attention

BuildTrainer = Callable[..., SFTTrainer]
SHORT: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2}


def trained(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_evaluations(build: BuildTrainer) -> None:
    trainer = build(training=SHORT | {"eval_steps": 3}, eval_rows=ROWS[:7])
    run_training(trainer)
    points = [(e["step"], e["eval_loss"]) for e in trainer.state.log_history if "eval_loss" in e]
    assert [step for step, _ in points] == [3, 4]  # and the end, always
    # The mean over tokens, not over batches: batches of 4 and 3 rows against all at once.
    trainer.args.per_device_eval_batch_size = 7
    with training_attention(trainer):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(points[-1][1], rel=1e-5)


def test_evaluations_are_ten_unless_asked(build: BuildTrainer) -> None:
    trainer = build(training=SHORT | {"max_steps": 20}, eval_rows=ROWS[:2])
    run_training(trainer)
    steps = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
    assert steps == list(range(2, 21, 2))


@pytest.mark.parametrize("packing", [False, True])
def test_evaluations_change_no_step(build: BuildTrainer, packing: bool) -> None:
    """On processors with AVX512-BF16 bitsandbytes repacks a layer's weights when it is used outside training."""
    training = SHORT | {"packing": packing, "per_device_train_batch_size": 2, "max_length": 64}
    plain = build(training=training)
    run_training(plain)
    evaluated = build(training=training | {"eval_steps": 1}, eval_rows=ROWS[:4])
    run_training(evaluated)
    assert losses_of(evaluated) == pytest.approx(losses_of(plain), rel=1e-5)


def test_checkpoints(build: BuildTrainer, tmp_path: Path) -> None:
    trainer = build(training=SHORT | {"save_steps": 1})
    run_training(trainer)
    folders = sorted((tmp_path / "checkpoints").glob("checkpoint-*"))[-2:]  # older ones may be gone
    assert [folder.name for folder in folders] == ["checkpoint-3", "checkpoint-4"]
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert (folders[-1] / name).is_file()
    # A run that goes on from there ends where the whole one did.
    whole = losses_of(trainer)
    resumed = build(training=SHORT)
    with training_attention(resumed):
        resumed.train(resume_from_checkpoint=str(folders[0]))
    assert losses_of(resumed)[-1] == pytest.approx(whole[-1], rel=1e-5)
    for name, weight in trained(resumed).items():
        torch.testing.assert_close(weight, trained(trainer)[name])


def test_early_stop_keeps_the_best_weights(build: BuildTrainer, tmp_path: Path) -> None:
    """A rate that destroys: the held-out loss rises after some steps."""
    training = {
        "max_steps": 40,
        "learning_rate": 0.3,
        "per_device_train_batch_size": 2,
        "eval_steps": 1,
        "early_stopping_patience": 2,
    }
    trainer = build("embedded", training=training, lora={"r": 2}, eval_rows=ROWS[:4])
    result = run_training(trainer)
    losses = losses_of(trainer, "eval_loss")
    best = losses.index(min(losses)) + 1
    assert result.num_steps == len(losses) == best + 2 < 40
    saved = load_file(tmp_path / f"checkpoints/checkpoint-{best}/adapter_model.safetensors")
    weights = trained(trainer)
    assert len(saved) == len(weights)
    for name, weight in saved.items():
        torch.testing.assert_close(weights[name.replace(".weight", ".default.weight")], weight)


LONG = {"max_steps": 6, "learning_rate": 1e-3, "logging_steps": 1}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_batch_size_that_fits_is_found(build: BuildTrainer, accumulated: int) -> None:
    """Halved, and the steps are those that were asked for: the same rows, so the same losses and weights."""
    training = LONG | {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": accumulated,
    }
    plain = build(training=training)
    expected = run_training(plain)

    memory = OutOfMemory(max_rows=2)
    trainer = build(training=training | {"auto_find_batch_size": True}, callbacks=[memory])
    result = run_training(trainer)
    assert (result.batch_size, result.num_steps) == (2, 6)
    assert trainer.args.gradient_accumulation_steps == 4 * accumulated
    assert first_batch(trainer)["input_ids"].shape[0] == 2
    assert len(memory.first_weights) == 3  # 8, 4, 2
    for weights in memory.first_weights[1:]:
        torch.testing.assert_close(weights, memory.first_weights[0], rtol=0, atol=0)
    assert memory.num_moments == [0, 0, 0]
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert result.num_tokens == expected.num_tokens
    assert losses_of(trainer) == pytest.approx(losses_of(plain), rel=1e-4)
    for name, weight in trained(plain).items():
        torch.testing.assert_close(trained(trainer)[name], weight, rtol=1e-2, atol=1e-4)


def test_half_a_batch_that_divides_no_step_is_passed_over(build: BuildTrainer) -> None:
    training = LONG | {"per_device_train_batch_size": 9}
    plain = build(training=training)
    run_training(plain)
    memory = OutOfMemory(max_rows=4)
    trainer = build(training=training | {"auto_find_batch_size": True}, callbacks=[memory])
    result = run_training(trainer)
    assert (result.batch_size, trainer.args.gradient_accumulation_steps) == (3, 3)
    assert losses_of(trainer) == pytest.approx(losses_of(plain), rel=1e-4)


def test_evaluation_has_batches_that_fit(build: BuildTrainer) -> None:
    training = LONG | {
        "per_device_train_batch_size": 8,
        "auto_find_batch_size": True,
        "eval_steps": 3,
    }
    trainer = build(training=training, eval_rows=ROWS[:7], callbacks=[OutOfMemory(max_rows=3)])
    run_training(trainer)
    assert next(iter(trainer.get_eval_dataloader()))["input_ids"].shape[0] == 2
    assert len(losses_of(trainer, "eval_loss")) == 2


def test_batch_size_is_found_again_after_a_checkpoint(build: BuildTrainer, tmp_path: Path) -> None:
    """Memory that was there before the interruption is gone: what goes on are weights, moments and steps."""
    training = LONG | {
        "per_device_train_batch_size": 8,
        "auto_find_batch_size": True,
        "save_steps": 2,
    }
    whole = build(training=training)
    run_training(whole)
    memory = OutOfMemory(max_rows=4)
    trainer = build(training=training, callbacks=[memory])
    result = run_training(trainer, tmp_path / "checkpoints/checkpoint-2")
    assert (result.batch_size, result.num_steps) == (4, 6)
    torch.testing.assert_close(memory.first_weights[1], memory.first_weights[0], rtol=0, atol=0)
    assert memory.num_moments[0] == memory.num_moments[1] > 0
    assert losses_of(trainer) == pytest.approx(losses_of(whole), rel=1e-4)

    # The next attempt begins with the size that fitted.
    state = json.loads((tmp_path / "checkpoints/checkpoint-4/trainer_state.json").read_text())
    assert state["train_batch_size"] == 4
    again = build(training=training, callbacks=[OutOfMemory(max_rows=4)])
    result = run_training(again, tmp_path / "checkpoints/checkpoint-4")
    assert (result.batch_size, again.args.gradient_accumulation_steps) == (4, 2)
    assert losses_of(again) == pytest.approx(losses_of(whole), rel=1e-4)


def test_nothing_fits(build: BuildTrainer) -> None:
    training = LONG | {"per_device_train_batch_size": 3, "auto_find_batch_size": True}
    with pytest.raises(ServiceError, match="not even a batch of one row fits") as caught:
        run_training(build(training=training, callbacks=[OutOfMemory(max_rows=0)]))
    assert caught.value.code == "out_of_memory"


def test_out_of_memory_is_raised_unless_asked(build: BuildTrainer) -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory"):
        run_training(build(training=LONG, callbacks=[OutOfMemory(max_rows=0)]))


def test_tensorboard(build: BuildTrainer, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = SHORT | {"report_to": ["tensorboard"], "eval_steps": 2}
    trainer = build(training=training, eval_rows=ROWS[:2])
    run_training(trainer)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert shown == [
        (step, pytest.approx(loss, rel=1e-5))
        for step, loss in enumerate(losses_of(trainer), start=1)
    ]
    assert [e.step for e in events.Scalars("eval/loss")] == [2, 4]


def test_integration_that_is_not_installed(
    build: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ServiceError, match=r"pip install 'dragoman\[wandb\]'") as caught:
        build(training={"report_to": ["wandb"]})
    assert caught.value.code == "integration_missing"


def test_integrations_write_beside_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.integrations.find_spec", lambda name: name)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_DIR", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    callbacks, names = reporting_callbacks(["mlflow", "wandb"], tmp_path)
    assert (callbacks, names) == ([], ["mlflow", "wandb"])  # transformers makes these itself
    import os

    assert str(tmp_path) in os.environ["MLFLOW_TRACKING_URI"]
    assert os.environ["WANDB_DIR"] == str(tmp_path)
    assert os.environ["WANDB_MODE"] == "offline"  # nobody can be asked for a key


@pytest.mark.parametrize("base", ["embedded", "llama"])
@pytest.mark.parametrize("preset", ["yoda-phi3", "wenyan-llama", "fast", "quality"])
def test_presets_are_whole_trainings(build: BuildTrainer, base: str, preset: str) -> None:
    dialogue = Row(
        prompt="The sky is dark.",
        completion="Dark, the sky is.",
        further=({"prompt": "And the sea?", "completion": "Deep, the sea is."},),
    )
    training = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1}
    trainer = build(
        base,
        rows=[*ROWS, dialogue],
        eval_rows=ROWS[:2],
        preset=preset,
        training=training,
        quantization={},
    )
    result = run_training(trainer)
    assert result.num_steps == 3
    losses = losses_of(trainer, "eval_loss")
    assert losses[-1] < losses[0]
