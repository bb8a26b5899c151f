"""Loading any causal LM in 4 bits, and what is refused."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config

from app.engine.engine import Engine
from app.model.base import ATTENTION, BaseModel
from app.model.loading import load_base_model
from benchmarks.random_model import make_phi3_mini
from core.base_model import EMBEDDED
from core.errors import ServiceError
from tests.app.harness import LIMITS, load_nf4
from tests.tiny_models import Architecture, make_tiny_model


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
@pytest.mark.parametrize("quantized", [False, True], ids=["plain checkpoint", "nf4 checkpoint"])
def test_any_checkpoint_comes_up_in_nf4(
    tmp_path: Path, architecture: Architecture, quantized: bool
) -> None:
    folder = make_tiny_model(tmp_path, architecture, quantized=quantized, dtype=torch.bfloat16)
    model = load_base_model(folder, device="cpu")
    layers = [m for m in model.model.modules() if isinstance(m, Linear4bit)]
    assert layers
    for layer in layers:
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested, "no double quantisation"
        assert layer.compute_dtype == torch.float32
    floats = {p.dtype for p in model.model.parameters() if p.is_floating_point()}
    assert floats == {torch.float32}
    assert not any(p.requires_grad for p in model.model.parameters())


def test_unpacked_weights_are_what_the_packed_ones_multiply_with(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, quantized=True)
    packed = load_base_model(folder, device="cpu", base_weights="packed")
    unpacked = load_nf4(folder)
    name = "model.layers.1.mlp.down_proj"
    layer = packed.model.get_submodule(name)
    plain = unpacked.model.get_submodule(name)
    assert isinstance(layer, Linear4bit)
    assert isinstance(plain, nn.Linear)
    assert not isinstance(plain, Linear4bit)
    layer.support_avx512bf16_for_cpu = False
    x = torch.randn(3, plain.in_features)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)
    assert unpacked.num_bytes > packed.num_bytes


def test_the_embedded_base_loads_and_is_small() -> None:
    model = load_base_model(EMBEDDED, device="cpu")
    assert model.vocab_size == 12_288
    assert model.max_context == 4096
    assert model.eos_token_ids == [3]
    assert model.num_bytes < 30_000_000


def test_attention_that_would_be_computed_wrongly_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attn_logit_softcapping=50.0,
    )
    capped = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    with pytest.raises(ServiceError, match="softcap=50") as caught:
        Engine(BaseModel(capped.eval(), None, torch.device("cpu")), LIMITS)
    assert caught.value.code == "base_model_unsupported"


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"model_type": "no-such-model"}'])
def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ServiceError, match=str(tmp_path)) as raised:
        load_base_model(tmp_path, device="cpu")
    assert raised.value.code == "base_model_unusable"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(ServiceError, match="no CUDA device"):
        load_base_model(EMBEDDED, device="cuda")


@pytest.mark.parametrize(
    ("error", "lasts"),
    [(torch.AcceleratorError("CUDA error"), True), (torch.OutOfMemoryError("full"), False)],
)
def test_a_device_that_computes_nothing_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, lasts: bool
) -> None:
    model = load_nf4(make_tiny_model(tmp_path, quantized=True))
    model.check_device()

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(torch.AcceleratorError) if lasts else nullcontext():
        model.check_device()
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    model.device = torch.device("cuda")
    assert model.device_usage() == {}


@pytest.mark.slow
def test_footprint_of_the_phi3_mini_shape(tmp_path: Path) -> None:
    """microsoft/Phi-3-mini-4k-instruct's shape with random weights, quantised here; needs 12 GB of memory and disk."""
    make_phi3_mini(tmp_path)
    loaded = load_base_model(tmp_path, device="cpu", compute_dtype="bfloat16")
    assert loaded.num_bytes == pytest.approx(2_206_341_312, rel=0.001)
