"""A run on tiny models of two architectures: what is trained, on what, and that each accepted key takes effect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoTokenizer, PreTrainedModel
from trl import SFTTrainer

from core.base_model import EMBEDDED
from core.errors import InvalidError, ServiceError
from core.prompt import Prompt, PromptRenderer, seal_prompt
from core.settings import Settings
from core.training_config import JobConfig, TrainingSection
from tests.tiny_models import Architecture, make_tiny_model
from tests.worker.conftest import ROWS
from worker.dataset import TrainingData, build_training_data
from worker.training import (
    Precision,
    build_trainer,
    choose_precision,
    linear_layers,
    load_base,
    run_training,
)

CPU = Precision(torch.device("cpu"), torch.float32)
BuildTrainer = Callable[..., SFTTrainer]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    architectures: tuple[Architecture, ...] = ("phi3", "llama")
    folders = {name: make_tiny_model(root / name, name) for name in architectures}
    folders["phi3-nf4"] = make_tiny_model(
        root / "nf4", "phi3", quantized=True, dtype=torch.bfloat16
    )
    return folders | {"embedded": EMBEDDED}


def tokenise(base: Path, max_length: int = 128) -> TrainingData:
    tokenizer = AutoTokenizer.from_pretrained(base)
    renderer = PromptRenderer(tokenizer, seal_prompt(Prompt(), tokenizer))
    return build_training_data(ROWS, renderer, max_length)


@pytest.fixture
def build(bases: dict[str, Path], tmp_path: Path) -> BuildTrainer:
    def build(base: str = "phi3", **config: Any) -> SFTTrainer:
        return build_trainer(
            load_base(bases[base], CPU),
            AutoTokenizer.from_pretrained(bases[base]),
            tokenise(bases[base]),
            JobConfig.model_validate(config),
            precision=CPU,
            output_dir=tmp_path,
            callbacks=[],
        )

    return build


def first_batch(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return next(iter(trainer.get_train_dataloader()))


def num_trainable(trainer: SFTTrainer) -> int:
    return sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def four_bit_layers(model: PreTrainedModel) -> dict[str, Linear4bit]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit)}


@pytest.mark.parametrize("base", ["phi3", "llama", "phi3-nf4"])
def test_base_is_nf4(bases: dict[str, Path], base: str) -> None:
    model = load_base(bases[base], CPU)
    layers = four_bit_layers(model)
    assert sorted(layers) == sorted(linear_layers(model))
    for layer in layers.values():
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested  # double quantisation
        assert layer.compute_dtype == torch.float32


def test_precision_follows_settings(settings: Settings) -> None:
    cpu = settings.model_copy(update={"device": "cpu"})
    assert choose_precision(cpu) == CPU
    half = cpu.model_copy(update={"compute_dtype": "bfloat16"})
    assert choose_precision(half).dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(settings: Settings) -> None:
    with pytest.raises(ServiceError, match="DRAGOMAN_DEVICE=cuda") as caught:
        choose_precision(settings.model_copy(update={"device": "cuda"}))
    assert caught.value.code == "device_unavailable"


@pytest.mark.parametrize("base", ["phi3", "llama"])
def test_only_completions_are_learnt(
    bases: dict[str, Path], build: BuildTrainer, base: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases[base])
    renderer = PromptRenderer(tokenizer, seal_prompt(Prompt(), tokenizer))
    answers = {tuple(renderer.completion_ids(r.prompt, r.completion)) for r in ROWS}
    questions = {tuple(renderer.prompt_ids(r.prompt)) for r in ROWS}

    batch = first_batch(build(base))
    for ids, labels, attended in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        is_trained = labels != -100
        assert tuple(ids[is_trained].tolist()) in answers
        assert tuple(ids[~is_trained & attended.bool()].tolist()) in questions
        assert torch.equal(ids[is_trained], labels[is_trained])


def test_whole_rows_are_learnt_if_asked(build: BuildTrainer) -> None:
    batch = first_batch(build(training={"completion_only_loss": False}))
    assert torch.equal(batch["labels"] != -100, batch["attention_mask"].bool())


def test_every_training_key_reaches_the_trainer(build: BuildTrainer) -> None:
    asked: dict[str, Any] = {
        "num_train_epochs": 2.5,
        "max_steps": 7,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_length": 99,
        "packing": True,
        "completion_only_loss": False,
        "optim": "adafactor",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "logging_steps": 4,
        "seed": 7,
        "gradient_checkpointing": True,
    }
    assert asked.keys() == TrainingSection.model_fields.keys()
    args = build(training=asked).args
    assert {name: getattr(args, name) for name in asked} == asked


def test_every_lora_key_takes_effect(build: BuildTrainer) -> None:
    shape = {"r": 4, "lora_alpha": 8}
    trainer = build(lora=shape | {"lora_dropout": 0.25})
    layer = trainer.model.base_model.model.model.layers[0].mlp.down_proj
    assert layer.lora_A["default"].weight.shape == (4, 128)
    assert layer.scaling["default"] == 2
    assert layer.lora_dropout["default"].p == 0.25
    # All linears of both layers: r * (in + out) each.
    widths = 2 * ((64 + 192) + (64 + 64) + (64 + 256) + (128 + 64))
    assert num_trainable(trainer) == 4 * widths

    stabilised = build(lora=shape | {"use_rslora": True, "target_modules": ["o_proj"]})
    assert num_trainable(stabilised) == 4 * 2 * (64 + 64)
    layer = stabilised.model.base_model.model.model.layers[0].self_attn.o_proj
    assert layer.scaling["default"] == 4


def test_target_modules_may_be_full_names(build: BuildTrainer) -> None:
    trainer = build(lora={"r": 4, "target_modules": ["model.layers.1.self_attn.o_proj"]})
    assert num_trainable(trainer) == 4 * (64 + 64)


@pytest.mark.parametrize("target", ["q_proj", "proj", "lm_head", "embed_tokens", "mlp", "layers.9"])
def test_unknown_target_module(build: BuildTrainer, target: str) -> None:
    with pytest.raises(InvalidError) as caught:
        build(lora={"target_modules": ["down_proj", target]})
    assert caught.value.code == "target_modules_invalid"
    assert repr(target) in caught.value.message
    assert "down_proj, gate_up_proj, o_proj, qkv_proj" in caught.value.message


@pytest.mark.parametrize("base", ["phi3", "llama"])
@pytest.mark.parametrize("packing", [False, True])
def test_loss_is_that_of_trl(build: BuildTrainer, base: str, packing: bool) -> None:
    trainer = build(base, training={"packing": packing, "max_length": 64})
    batch = first_batch(trainer)
    num_tokens = (batch["labels"][:, 1:] != -100).sum()
    losses, gradients = [], []
    for trainer_class in (type(trainer), SFTTrainer):
        trainer.model.zero_grad()
        loss = trainer_class.compute_loss(
            trainer, trainer.model, dict(batch), num_items_in_batch=num_tokens
        )
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.requires_grad])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", ["phi3", "llama"])
def test_packed_rows_do_not_see_each_other(build: BuildTrainer, base: str) -> None:
    """Without flash attention: the mask has to keep them apart."""
    losses = []
    for packing in (False, True):
        training = {"packing": packing, "max_length": 128, "per_device_train_batch_size": 32}
        trainer = build(base, training=training)
        batch = first_batch(trainer)
        num_tokens = (batch["labels"][:, 1:] != -100).sum()
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_tokens)
        losses.append((int(num_tokens), loss.item()))
    assert batch["input_ids"].shape[0] == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("base", ["phi3", "llama", "phi3-nf4"])
def test_training_learns_and_leaves_the_base_alone(build: BuildTrainer, base: str) -> None:
    trainer = build(base, training={"max_steps": 30, "learning_rate": 1e-2})
    before = {n: m.weight.clone() for n, m in four_bit_layers(trainer.model).items()}
    result = run_training(trainer)
    assert result.num_steps == 30
    assert result.has_learnt
    assert result.final_loss < result.first_loss - 1
    assert result.num_tokens > 0
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters() if p.requires_grad)
    for name, layer in four_bit_layers(trainer.model).items():
        assert torch.equal(layer.weight, before[name])


def losses_of(trainer: SFTTrainer) -> list[float]:
    run_training(trainer)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_seed_decides_the_run(build: BuildTrainer) -> None:
    short = {"max_steps": 3, "learning_rate": 1e-2}
    runs = [losses_of(build(training=short | {"seed": seed})) for seed in (1, 1, 2)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] != pytest.approx(runs[2], rel=1e-5)


def test_gradient_checkpointing_changes_no_loss(build: BuildTrainer) -> None:
    short = {"max_steps": 3, "learning_rate": 1e-2}
    plain = losses_of(build(training=short))
    saving = losses_of(build(training=short | {"gradient_checkpointing": True}))
    assert saving == pytest.approx(plain, rel=1e-4)


def test_accumulated_batches_are_one_batch(build: BuildTrainer) -> None:
    whole = build(training={"max_steps": 2, "per_device_train_batch_size": 32})
    parts = build(
        training={
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 4,
        }
    )
    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-4)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        ("linear", 1e-3),
        ("cosine", 1e-3),
        ("constant", 1e-3),
        ("constant_with_warmup", 1e-3),
        ("polynomial", 1e-9),
        ("inverse_sqrt", 1e-3),
    ],
)
def test_optimisers_and_schedules(
    build: BuildTrainer, optim: str, schedule: str, rate: float
) -> None:
    training = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "optim": optim,
        "lr_scheduler_type": schedule,
        "learning_rate": rate,
        "warmup_steps": 1,
    }
    trainer = build(lora={"r": 1}, training=training)
    assert run_training(trainer).num_steps == 2


def test_loss_that_is_no_number(build: BuildTrainer) -> None:
    trainer = build(training={"max_steps": 2})
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(InvalidError, match="learning_rate") as caught:
        run_training(trainer)
    assert caught.value.code == "training_diverged"


def test_run_that_learns_nothing(build: BuildTrainer) -> None:
    """A trained base, and a rate that destroys more than it teaches."""
    training = {"max_steps": 20, "learning_rate": 1, "per_device_train_batch_size": 2}
    result = run_training(build("embedded", training=training))
    assert result.final_loss > result.first_loss
    assert not result.has_learnt


def test_training_after_an_evaluation(build: BuildTrainer) -> None:
    """On processors with AVX512-BF16 bitsandbytes repacks a layer's weights when it is used outside training."""
    training = {"max_steps": 3, "learning_rate": 1e-2}
    plain = losses_of(build(training=training))
    trainer = build(training=training)
    trainer.model.eval()
    with torch.no_grad():
        trainer.model(input_ids=torch.tensor([[5, 300, 301]]))
    trainer.model.train()
    assert losses_of(trainer) == pytest.approx(plain, rel=1e-4)
