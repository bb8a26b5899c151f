"""What the engine's tests share: adapters made by PEFT, requests, and plain PEFT's own answers to them."""

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import app.model.loading as loading
from app.engine.engine import Engine, EngineLimits
from app.engine.sequence import SamplingParams, Sequence, Update
from app.lora.weights import LoraLayout, LoraWeights, SiteShape, SiteWeights
from app.model.base import BaseModel
from app.model.loading import load_base_model
from core.adapter_version import WEIGHTS_FILE, AdapterVersion, content_sha256
from core.base_model import NF4_CONFIG
from tests.seals import make_seal

LIMITS = EngineLimits(
    max_running=32,
    max_waiting=256,
    max_prefill_tokens=64,
    kv_cache_tokens=4096,
    lora_width=64,
    max_adapters=16,
    adapter_wait_s=10,
    adapter_memory_mb=64,
    num_threads=0,
)


def load_reference(folder: Path, *, nf4: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """The base model as plain transformers has it."""
    options = {}
    if nf4:
        options["quantization_config"] = BitsAndBytesConfig(
            **NF4_CONFIG, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            without_avx512(module)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def load_unquantised(folder: Path) -> BaseModel:
    """The engine's model without 4 bits, to tell rounding from mistakes."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="dragoman"
    )
    return BaseModel(model.eval().requires_grad_(False), None, torch.device("cpu"))


def make_adapter(
    folder: Path, base: Any, name: str, *, seed: int = 0, scale: float = 0.3, **lora: Any
) -> AdapterVersion:
    """A random adapter, written by PEFT, with B away from zero so that it changes the answers."""
    torch.manual_seed(seed)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=scale)
    path = folder / name
    model.save_pretrained(path)
    model.unload()
    return as_version(path, name)


def pack(sites: SiteWeights) -> LoraWeights:
    """In one piece, as a loader thread brings them."""
    pairs = list(sites.values())
    shapes = [SiteShape(name, len(a), a.shape[1], b.shape[1]) for name, (a, b) in sites.items()]
    layout = LoraLayout(tuple(shapes), pairs[0][0].dtype, pairs[0][1].dtype)
    parts = [torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1)]
    return LoraWeights(layout, torch.cat([part.view(torch.uint8) for part in parts]))


def as_version(path: Path, name: str, number: int = 1) -> AdapterVersion:
    has_weights = (path / WEIGHTS_FILE).exists()
    seal = make_seal(stop_token_ids=[], content_sha256=content_sha256(path) if has_weights else "0")
    return AdapterVersion(name=name, version=number, path=path, seal=seal)


@dataclass
class Request:
    """A sequence and everything that its sink heard."""

    sequence: Sequence
    updates: "queue.Queue[Update]"

    def result(self, timeout_s: float = 60) -> Update:
        """The last update."""
        while True:
            update = self.updates.get(timeout=timeout_s)
            if update.finish_reason is not None:
                return update


def make_request(
    prompt_ids: list[int],
    adapter: AdapterVersion | None = None,
    *,
    max_new_tokens: int = 12,
    streaming: bool = False,
    stop: list[int] | None = None,
    **params: Any,
) -> Request:
    updates: queue.Queue[Update] = queue.Queue()
    sampling = SamplingParams(max_new_tokens, frozenset(stop or []), **params)
    return Request(Sequence(prompt_ids, sampling, adapter, updates.put, streaming), updates)


def start_engine(model: BaseModel, **limits: Any) -> Engine:
    values = {name: getattr(LIMITS, name) for name in LIMITS.__slots__} | limits
    engine = Engine(model, EngineLimits(**values))
    engine.start()
    return engine


def load_nf4(folder: Path, base_weights: str = "unpacked") -> BaseModel:
    """As the service loads it, in a form that rounds as the reference does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "has_avx512bf16", lambda: False)
        model = load_base_model(folder, device="cpu", base_weights=base_weights)
    for module in model.model.modules():
        without_avx512(module)
    return model


def without_avx512(module: torch.nn.Module) -> None:
    """bitsandbytes' AVX512-BF16 kernel rounds by batch shape; without it equal sums give equal tokens."""
    if isinstance(module, Linear4bit):
        module.support_avx512bf16_for_cpu = False


def peft_greedy(
    base: Any, prompt_ids: list[int], adapter: AdapterVersion | None, max_new_tokens: int
) -> list[int]:
    """What plain PEFT's generate answers to one prompt, alone."""
    model = PeftModel.from_pretrained(base, adapter.path) if adapter else base
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    if adapter:
        model.unload()
    return output[0, len(prompt_ids) :].tolist()


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
