"""A run on tiny models of two architectures: what is loaded, what is trained on, and that it learns."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from transformers import PreTrainedModel
from trl import SFTTrainer

from core.errors import InvalidError, ServiceError
from core.settings import Settings
from core.training_config import JobConfig, QuantizationSection
from tests.worker.conftest import ROWS
from tests.worker.trainers import CPU, EXACT, first_batch, losses_of, renderer_of
from worker.packed_attention import used_by
from worker.training import (
    choose_precision,
    has_fallen,
    linear_layers,
    load_base,
    run_training,
    training_attention,
)
from worker.unpacked import UnpackedLinear4bit

BuildTrainer = Callable[..., SFTTrainer]


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
        assert layer.compute_dtype == (torch.bfloat16 if has_avx512bf16() else torch.float32)
    for parameter in model.parameters():
        assert parameter.dtype in (torch.uint8, torch.float32)
        assert not parameter.requires_grad


def test_quantization_takes_effect(bases: dict[str, Path]) -> None:
    quantization = QuantizationSection(
        bnb_4bit_use_double_quant=False, bnb_4bit_compute_dtype="float32"
    )
    for layer in four_bit_layers(load_base(bases["phi3"], CPU, quantization)).values():
        assert not layer.weight.quant_state.nested
        assert layer.compute_dtype == torch.float32


@pytest.mark.parametrize("base", ["phi3", "phi3-nf4"])
def test_unpacked_layers_compute_the_same(bases: dict[str, Path], base: str) -> None:
    model = load_base(bases[base], CPU, QuantizationSection(**EXACT))
    for layer in four_bit_layers(model).values():
        assert isinstance(layer, UnpackedLinear4bit)
        results = []
        for forward in (UnpackedLinear4bit.forward, Linear4bit.forward):
            x = torch.randn(
                2, 3, layer.in_features, generator=torch.Generator().manual_seed(0)
            ).requires_grad_()
            y = forward(layer, x)
            y.square().sum().backward()
            results += [(y.detach(), x.grad)]
        # bitsandbytes' forward takes the exact products of scale and value, its backward those in the checkpoint's
        # dtype, bfloat16 here. We, as the server, take the latter for both.
        is_exact = layer.weight.quant_state.dtype == torch.float32
        torch.testing.assert_close(
            results[0][0], results[1][0], rtol=0, atol=1e-5 if is_exact else 2e-2
        )


def test_bases_too_large_to_unpack_stay_packed(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.unpacked._MEMORY_SHARE", 0.0)
    for layer in four_bit_layers(load_base(bases["phi3"], CPU)).values():
        assert type(layer) is Linear4bit


def test_precision_follows_settings(settings: Settings) -> None:
    cpu = settings.model_copy(update={"device": "cpu"})
    assert choose_precision(cpu) == CPU
    assert choose_precision(cpu, JobConfig(training={"bf16": True})) == CPU
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
    renderer = renderer_of(bases[base])
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
    losses, gradients = [], []
    for packing in (False, True):
        training = {"packing": packing, "max_length": 128, "per_device_train_batch_size": 32}
        trainer = build(base, training=training)
        batch = first_batch(trainer)
        num_tokens = (batch["labels"][:, 1:] != -100).sum()
        # With transformers' mask, and with our attention, which needs none.
        for attention in (nullcontext(), used_by(trainer.model.get_base_model())):
            trainer.model.zero_grad()
            with attention:
                loss = trainer.compute_loss(
                    trainer.model, dict(batch), num_items_in_batch=num_tokens
                )
            loss.backward()
            losses.append((int(num_tokens), loss.item()))
            gradients.append(
                [p.grad.clone() for p in trainer.model.parameters() if p.requires_grad]
            )
    assert batch["input_ids"].shape[0] == 1
    for other in losses[1:]:
        assert losses[0] == pytest.approx(other, rel=1e-5)
    for grads in gradients[1:]:
        torch.testing.assert_close(gradients[0], grads, rtol=1e-4, atol=1e-6)


def test_attention_is_given_back(build: BuildTrainer) -> None:
    trainer = build()
    config = trainer.model.get_base_model().config
    before = config._attn_implementation
    with training_attention(trainer):
        assert config._attn_implementation != before
    assert config._attn_implementation == before


def test_sliding_windows_keep_their_masks(build: BuildTrainer) -> None:
    trainer = build(training={"max_length": 64})
    trainer.model.get_base_model().config.sliding_window = 32
    with training_attention(trainer):
        assert trainer.model.get_base_model().config._attn_implementation == "sdpa"


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


def train(trainer: SFTTrainer) -> list[float]:
    run_training(trainer)
    return losses_of(trainer)


def test_seed_decides_the_run(build: BuildTrainer) -> None:
    short = {"max_steps": 3, "learning_rate": 1e-2}
    runs = [train(build(training=short | {"seed": seed})) for seed in (1, 1, 2)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] != pytest.approx(runs[2], rel=1e-5)


def test_8_bit_moments_learn_as_float32_ones_do(build: BuildTrainer) -> None:
    """On a CPU, too; bitsandbytes keeps those of a matrix of fewer than 4,096 values in float32."""
    lora = {"r": 64}
    short = {"max_steps": 12, "learning_rate": 3e-3}
    in_float32 = train(build(training=short, lora=lora))
    trainer = build(training=short | {"optim": "adamw_8bit"}, lora=lora)
    losses = train(trainer)
    assert losses == pytest.approx(in_float32, rel=0.02)
    assert losses[-1] < losses[0] - 1
    moments = [state["state1"] for state in trainer.optimizer.state.values()]
    assert {moment.dtype for moment in moments} == {torch.uint8}


def test_gradient_checkpointing_changes_no_loss(build: BuildTrainer) -> None:
    short = {"max_steps": 3, "learning_rate": 1e-2}
    plain = train(build(training=short))
    saving = train(build(training=short | {"gradient_checkpointing": True}))
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
    assert train(parts) == pytest.approx(train(whole), rel=1e-4)


def test_loss_that_is_no_number(build: BuildTrainer) -> None:
    trainer = build(training={"max_steps": 2})
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(InvalidError, match="learning_rate") as caught:
        run_training(trainer)
    assert caught.value.code == "training_diverged"


def test_run_that_learns_nothing(build: BuildTrainer) -> None:
    """A trained base, and a rate that destroys more than it teaches."""
    training = {
        "max_steps": 20,
        "learning_rate": 1,
        "lr_scheduler_type": "constant",  # ruinous to the last step
        "per_device_train_batch_size": 2,
    }
    result = run_training(build("embedded", training=training))
    assert result.final_loss > result.first_loss
    assert not result.has_learnt


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0] * 10 + [2.9] * 10, True),
        ([2.0] * 30, False),
        ([*[3.0] * 10, *[2.0] * 9, 3.5], True),  # one hard batch at the end says nothing
        ([2.7, *[40.0] * 9, *[10.0] * 10], False),  # it falls, but from what the rate has destroyed
        ([1.0, 2.0, 3.0], True),
        ([], True),
    ],
)
def test_what_counts_as_a_fall(losses: list[float], expected: bool) -> None:
    assert has_fallen(losses) is expected
