"""Each key that a job may name takes effect: in the trainer's arguments, its layers, its batches or its optimiser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import mse_loss
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from core.errors import InvalidError, ServiceError
from core.training_config import LoraSection, QuantizationSection, TrainingSection
from tests.worker.conftest import ROWS
from tests.worker.trainers import (
    CPU,
    EXACT,
    first_batch,
    lora_layers,
    losses_of,
    num_trainable,
    renderer_of,
)
from worker.lora_init import init_loftq
from worker.training import load_base, run_training

BuildTrainer = Callable[..., SFTTrainer]
# Where SFTConfig's name, or what becomes of the value, differs. The rest is looked for under its own name.
ELSEWHERE = {
    "bf16",  # worker.precision
    "fp16",
    "assistant_only_loss",  # labels: tests/worker/test_dataset.py
    "early_stopping_patience",  # tests/worker/test_training_runs.py
    "report_to",
    "gradient_checkpointing",
}


def test_every_training_key_reaches_the_trainer(build: BuildTrainer) -> None:
    asked: dict[str, Any] = {
        "num_train_epochs": 2.5,
        "max_steps": 7,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "auto_find_batch_size": True,
        "max_length": 99,
        "packing": True,
        "packing_strategy": "wrapped",
        "completion_only_loss": False,
        "optim": "adafactor",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "logging_steps": 4,
        "eval_steps": 2,
        "save_steps": 6,
        "seed": 7,
        "activation_offloading": False,
        "dataset_num_proc": 2,
    }
    assert asked.keys() | ELSEWHERE == TrainingSection.model_fields.keys()
    args = build(training=asked | {"gradient_checkpointing": True}, eval_rows=ROWS[:4]).args
    assert {name: getattr(args, name) for name in asked} == asked
    assert args.gradient_checkpointing
    assert not build(training={"gradient_checkpointing": False}).args.gradient_checkpointing


def test_every_lora_key_takes_effect(build: BuildTrainer) -> None:
    assert LoraSection.model_fields.keys() == {
        *("r", "lora_alpha", "lora_dropout", "target_modules"),
        *("bias", "use_rslora", "init_lora_weights"),
    }
    shape = {"r": 4, "lora_alpha": 8}
    trainer = build(lora=shape | {"lora_dropout": 0.25})
    layer = lora_layers(trainer)["model.layers.0.mlp.down_proj"]
    assert layer.lora_A["default"].weight.shape == (4, 128)
    assert layer.scaling["default"] == 2
    assert layer.lora_dropout["default"].p == 0.25
    # All linears of both layers: r * (in + out) each.
    widths = 2 * ((64 + 192) + (64 + 64) + (64 + 256) + (128 + 64))
    assert num_trainable(trainer) == 4 * widths

    stabilised = build(lora=shape | {"use_rslora": True, "target_modules": ["o_proj"]})
    assert num_trainable(stabilised) == 4 * 2 * (64 + 64)
    layer = lora_layers(stabilised)["model.layers.0.self_attn.o_proj"]
    assert layer.scaling["default"] == 4


def test_target_modules_may_be_full_names(build: BuildTrainer) -> None:
    trainer = build(lora={"r": 4, "target_modules": ["model.layers.1.self_attn.o_proj"]})
    assert num_trainable(trainer) == 4 * (64 + 64)


@pytest.mark.parametrize("target", ["proj", "lm_head", "embed_tokens", "mlp", "layers.9"])
def test_unknown_target_module(build: BuildTrainer, target: str) -> None:
    with pytest.raises(InvalidError) as caught:
        build(lora={"target_modules": ["down_proj", target]})
    assert caught.value.code == "target_modules_invalid"
    assert repr(target) in caught.value.message
    assert "down_proj, gate_up_proj, o_proj, qkv_proj" in caught.value.message


def first_weights(trainer: SFTTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    layer = lora_layers(trainer)["model.layers.0.mlp.down_proj"]
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def test_first_weights(build: BuildTrainer) -> None:
    shape = {"r": 16, "lora_alpha": 16}
    a, b = first_weights(build(lora=shape))
    assert not b.any()
    assert a.abs().max() <= 128**-0.5  # Kaiming's uniform distribution

    a, b = first_weights(build(lora=shape | {"init_lora_weights": "gaussian"}))
    assert not b.any()
    assert a.std().item() == pytest.approx(1 / 16, rel=0.1)

    a, b = first_weights(build(lora=shape | {"init_lora_weights": "orthogonal"}))
    assert a.dtype == b.dtype == torch.float32
    assert a.abs().min() > 0
    assert b.abs().min() > 0
    torch.testing.assert_close(b @ a, torch.zeros(64, 128), rtol=0, atol=1e-5)

    a, b = first_weights(build(lora=shape | {"init_lora_weights": False}))
    assert (b @ a).abs().max() > 1e-3


@pytest.mark.parametrize("base", ["phi3", "llama"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_loftq_starts_nearer_to_full_precision(
    bases: dict[str, Path], build: BuildTrainer, base: str, use_rslora: bool
) -> None:
    lora = {"r": 16, "lora_alpha": 16, "use_rslora": use_rslora, "init_lora_weights": "loftq"}
    trainer = build(base, lora=lora)
    exact = load_file(bases[base] / "model.safetensors")
    for name, layer in lora_layers(trainer).items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        lost = exact[f"{name}.weight"] - layer.get_base_layer().unpacked
        left = lost - b @ a * layer.scaling["default"]
        best = torch.linalg.svdvals(lost)[16:].square().sum().sqrt()
        assert left.norm().item() == pytest.approx(best.item(), rel=0.02)  # Eckart-Young

    ids = torch.tensor([renderer_of(bases[base]).prompt_ids(row.prompt) for row in ROWS[:2]])
    full = AutoModelForCausalLM.from_pretrained(bases[base], dtype=torch.float32).eval()
    plain = load_base(bases[base], CPU, QuantizationSection(**EXACT)).eval()
    with torch.no_grad():
        expected = full(input_ids=ids).logits
        error_of_nf4 = mse_loss(plain(input_ids=ids).logits, expected)
        error_of_loftq = mse_loss(trainer.model.eval()(input_ids=ids).logits, expected)
    assert error_of_loftq < 0.8 * error_of_nf4


def test_loftq_without_the_weights(
    bases: dict[str, Path], build: BuildTrainer, tmp_path: Path
) -> None:
    with pytest.raises(ServiceError, match=r"model\.layers\.0.*\.weight") as caught:
        init_loftq(build().model, tmp_path)
    assert caught.value.code == "loftq_impossible"


def test_preparation_for_kbit_training(build: BuildTrainer) -> None:
    """On a CPU everything is float32 in any case; test_presets.py has a large model's figures."""
    trainer = build(quantization=EXACT | {"prepare_model_for_kbit_training": True})
    assert run_training(trainer).has_learnt


def test_packed_shapes(bases: dict[str, Path], build: BuildTrainer) -> None:
    renderer = renderer_of(bases["phi3"])
    total = sum(len(s.ids) for r in ROWS for s in renderer.segments([(r.prompt, r.completion)]))
    one = {"packing": True, "max_length": 48, "per_device_train_batch_size": 1}
    wrapped = build(training=one | {"packing_strategy": "wrapped"})
    lengths = [len(ids) for ids in wrapped.train_dataset["input_ids"]]
    assert lengths == [48] * (total // 48) + [total % 48] * (total % 48 > 0)
    assert first_batch(wrapped)["input_ids"].shape == (1, 48)

    short = one | {"max_length": 16}  # every row is longer
    with pytest.raises(InvalidError, match="max_length=16"):
        build(training=short | {"packing_strategy": "bfd"})
    split = build(training=short | {"packing_strategy": "bfd_split"})
    assert sum(len(ids) for ids in split.train_dataset["input_ids"]) == total

    whole = build(training=one | {"packing_strategy": "bfd"})
    rows_packed = sum(len(lengths) for lengths in whole.train_dataset["seq_lengths"])
    assert rows_packed == len(ROWS)
    assert len(whole.train_dataset) < len(ROWS)
    batch = first_batch(build(training=one | {"packing": True, "per_device_train_batch_size": 2}))
    assert batch["input_ids"].shape[0] == 1  # two blocks, flattened
    assert (batch["position_ids"] == 0).sum() > 2


OPTIMISERS = {
    "adamw_torch": torch.optim.AdamW,
    "adamw_torch_fused": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_optimisers(build: BuildTrainer, optim: str) -> None:
    training = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "optim": optim,
        "learning_rate": 1e-3,
        "weight_decay": 0.25,
    }
    trainer = build(lora={"r": 1}, training=training)
    assert run_training(trainer).num_steps == 2
    optimiser = trainer.optimizer.optimizer
    if optim in OPTIMISERS:
        assert isinstance(optimiser, OPTIMISERS[optim])
        assert bool(optimiser.defaults.get("fused")) == (optim == "adamw_torch_fused")
    else:
        assert type(optimiser).__name__ == "Adafactor"
    assert optimiser.param_groups[0]["weight_decay"] == 0.25


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [  # one step of warm-up, then three; the rate that each step is taken with
        ("linear", [0, 1, 2 / 3, 1 / 3]),
        ("cosine", [0, 1, 0.75, 0.25]),
        ("constant", [1, 1, 1, 1]),
        ("constant_with_warmup", [0, 1, 1, 1]),
        ("polynomial", [0, 1, 2 / 3, 1 / 3]),
        ("inverse_sqrt", [0, 1, 0.5**0.5, (1 / 3) ** 0.5]),
    ],
)
def test_schedules(build: BuildTrainer, schedule: str, expected: list[float]) -> None:
    training = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": schedule,
        "learning_rate": 1e-8,
        "warmup_steps": 1,
    }
    trainer = build(lora={"r": 1}, training=training)
    run_training(trainer)
    rates = [rate / 1e-8 for rate in losses_of(trainer, "learning_rate")]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_gradients_are_clipped(build: BuildTrainer) -> None:
    training = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e-3}
    trainer = build(training=training)
    before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    run_training(trainer)
    after = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
    change = torch.stack([(x - y).norm() for x, y in zip(after, before, strict=True)]).norm()
    assert change.item() == pytest.approx(1e-3, rel=1e-3)
