"""The recipes as they were published, and what a job may change of them."""

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from pydantic import ValidationError
from transformers import BitsAndBytesConfig, Phi3Config, Phi3ForCausalLM
from transformers.integrations import replace_with_bnb_linear

from core.base_model import NF4_CONFIG
from core.presets import PRESETS
from core.training_config import JobConfig


def config_of(preset: str, **asked: Any) -> JobConfig:
    return JobConfig.model_validate({"preset": preset} | asked)


def test_yoda_phi3() -> None:
    config = config_of("yoda-phi3")
    quantization = config.quantization
    assert quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_use_double_quant
    assert quantization.prepare_model_for_kbit_training
    lora = config.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.bias) == (8, 16, 0.05, "none")
    assert lora.target_modules == ["qkv_proj", "gate_up_proj", "down_proj", "o_proj"]
    assert (lora.use_rslora, lora.init_lora_weights) == (False, True)
    training = config.training
    assert training.gradient_checkpointing
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (16, 1)
    assert training.auto_find_batch_size
    assert (training.max_length, training.packing_strategy) == (64, "wrapped")
    assert training.packing
    assert (training.num_train_epochs, training.max_steps) == (10, -1)
    assert (training.learning_rate, training.optim) == (3e-4, "paged_adamw_8bit")
    assert (training.lr_scheduler_type, training.warmup_steps) == ("linear", 0)
    assert (training.logging_steps, training.bf16) == (10, True)
    assert training.trains_all_answers


def test_wenyan_llama() -> None:
    config = config_of("wenyan-llama")
    lora = config.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.bias) == (16, 16, 0, "none")
    assert isinstance(lora.target_modules, list)
    assert sorted(lora.target_modules) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert (lora.use_rslora, lora.init_lora_weights) == (True, "loftq")
    training = config.training
    assert training.gradient_checkpointing
    assert training.activation_offloading
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 4)
    assert (training.max_steps, training.warmup_steps) == (60, 5)
    assert (training.learning_rate, training.optim) == (2e-4, "adamw_8bit")
    assert (training.weight_decay, training.lr_scheduler_type) == (0.01, "linear")
    assert (training.max_length, training.packing) == (2048, False)
    assert (training.dataset_num_proc, training.logging_steps, training.seed) == (2, 1, 3407)
    assert training.trains_all_answers


@pytest.mark.parametrize("preset", list(PRESETS))
def test_named_values_win_over_the_preset(preset: str) -> None:
    config = config_of(preset, training={"num_train_epochs": 7.5}, lora={"r": 3})
    assert (config.training.num_train_epochs, config.lora.r) == (7.5, 3)
    plain = config_of(preset)
    assert config.training.model_dump(exclude={"num_train_epochs"}) == plain.training.model_dump(
        exclude={"num_train_epochs"}
    )
    # What is stored is complete: read again it stays what it is, whatever presets become.
    assert JobConfig.model_validate(config.model_dump(mode="json")) == config


def test_unknown_preset() -> None:
    with pytest.raises(ValidationError, match=r"yoda-phi3.*wenyan-llama.*fast.*quality"):
        config_of("slow")


@pytest.mark.slow
def test_phi3_mini_has_the_published_figures() -> None:
    """12.58 M trainable of 3,833.66 M parameters, 2,651.07 MB with the LoRA. Layers are quantised one by one, and not kept."""
    shape = Phi3Config(
        vocab_size=32_064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = config_of("yoda-phi3")
    with init_empty_weights():
        model = Phi3ForCausalLM(shape).to(torch.bfloat16)
        model = replace_with_bnb_linear(
            model,
            modules_to_not_convert=["lm_head"],
            quantization_config=BitsAndBytesConfig(**NF4_CONFIG),
        )
    packed_bytes = 0
    measured: dict[tuple[int, int], int] = {}
    for module in model.modules():
        if isinstance(module, Linear4bit):
            size = (module.out_features, module.in_features)
            if size not in measured:
                layer = Linear4bit(size[1], size[0], bias=False, quant_type="nf4")
                layer.load_state_dict({"weight": torch.randn(size, dtype=torch.bfloat16)})
                layer.to("cpu")
                assert layer.weight.dtype == torch.uint8
                measured[size] = layer.weight.nbytes
            packed_bytes += measured[size]
    model.is_loaded_in_4bit = True
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    plain = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n or "head" in n]
    assert all(p.dtype == torch.float32 for p in plain)
    lora = config.lora
    peft_model = get_peft_model(
        model,
        LoraConfig(r=lora.r, target_modules=lora.target_modules, task_type="CAUSAL_LM"),
        low_cpu_mem_usage=True,
    )
    trainable = [p for p in peft_model.parameters() if p.requires_grad]
    footprint_bytes = packed_bytes + sum(p.nbytes for p in [*plain, *trainable])
    assert footprint_bytes / 1e6 == pytest.approx(2651.07, abs=0.01)
    num_trainable = sum(p.numel() for p in trainable)
    assert num_trainable / 1e6 == pytest.approx(12.58, abs=0.005)
    linears = sum(
        m.in_features * m.out_features for m in model.modules() if isinstance(m, Linear4bit)
    )
    num_all = linears + sum(p.numel() for p in plain) + num_trainable
    assert num_all / 1e6 == pytest.approx(3833.66, abs=0.005)
    assert num_trainable / num_all == pytest.approx(0.0033, abs=0.00005)
