"""What others offer for the same requests, as their own examples use it; nothing here is ours.

A peer that cannot run here raises SkippedError, which says why.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
)

from benchmarks.cases import MIXED_RANKS, Case
from benchmarks.measuring import Result, measure
from core.adapter_version import AdapterVersion
from core.base_model import EMBEDDED, NF4_CONFIG

PEFT_BATCH = 16


class SkippedError(Exception):
    """This peer cannot run here."""


def measure_peft(
    base: Path, cases: list[Case], versions: list[AdapterVersion], sample: int
) -> list[Result]:
    """(a) and (b); (a) serves the first `sample` cases, 0: all."""
    first, *others = versions
    model = PeftModel.from_pretrained(load_reference(base), first.path, adapter_name=first.name)
    for version in others:
        model.load_adapter(version.path, adapter_name=version.name)
    model.eval()
    some = cases[: sample or len(cases)]
    return [
        measure(
            "(a) set_adapter + generate, one by one",
            some,
            lambda: _one_by_one(model, some, versions),
        ),
        measure(
            f"(b) PEFT adapter_names, batches of {PEFT_BATCH}",
            cases,
            lambda: _adapter_names(model, cases, versions),
        ),
    ]


def measure_continuous_batching(base: Path, cases: list[Case], concurrency: int) -> list[Result]:
    """transformers' own, on the bare base: it knows no adapter per request."""
    model = load_reference(base)
    has_gpu = model.device.type == "cuda"
    config = ContinuousBatchingConfig(
        max_requests_per_batch=concurrency,
        use_cuda_graph=has_gpu,  # off by default where attention needs a mask; twice as fast with them
        max_memory_percent=None if has_gpu else 0.1,
        auto_switch_to_flash=has_gpu,
    )
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1)
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=config
    ) as manager:
        return [
            measure(
                "transformers continuous batching, base only",
                cases,
                lambda: _continuous_batching(manager, cases),
                rounds=2,
            )
        ]


def measure_vllm(
    base: Path, cases: list[Case], versions: list[AdapterVersion], concurrency: int
) -> list[Result]:
    """vLLM with the same nf4 base and adapters, where it is installed beside this project."""
    if find_spec("vllm") is None:
        raise SkippedError("vllm is not installed")
    if not torch.cuda.is_available():
        raise SkippedError("vllm multiplies bitsandbytes weights on GPUs only")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        model=str(base),
        quantization="bitsandbytes",
        dtype="bfloat16",
        enable_lora=True,
        max_loras=len(versions),
        max_lora_rank=max(MIXED_RANKS),
        max_num_seqs=concurrency,
    )
    prompts = [{"prompt_token_ids": case.prompt_ids} for case in cases]
    params = [
        SamplingParams(temperature=0, max_tokens=case.num_new, ignore_eos=True) for case in cases
    ]
    loras = [LoRARequest(v.name, number, str(v.path)) for number, v in enumerate(versions, 1)]

    def run(has_adapters: bool) -> list[list[int]]:
        chosen = [loras[case.adapter] for case in cases] if has_adapters else None
        outputs = llm.generate(prompts, params, lora_request=chosen, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return [
        measure("vLLM, base only", cases, lambda: run(False), rounds=2),
        measure("vLLM", cases, lambda: run(True), rounds=2),
    ]


def load_reference(base: Path) -> Any:
    """The base as the libraries' own examples load it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options: dict[str, Any] = {}
    if base != EMBEDDED:
        options["quantization_config"] = BitsAndBytesConfig(
            **NF4_CONFIG, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, device_map={"": device}, **options
    )
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = dtype
    return model.eval()


@torch.inference_mode()
def _one_by_one(model: Any, cases: list[Case], versions: list[AdapterVersion]) -> list[list[int]]:
    outputs = []
    for case in cases:
        model.set_adapter(versions[case.adapter].name)
        ids = torch.tensor([case.prompt_ids], device=model.device)
        output = _generate(model, ids, torch.ones_like(ids), case.num_new)
        outputs.append(output[0, ids.shape[1] :].tolist())
    return outputs


@torch.inference_mode()
def _adapter_names(
    model: Any, cases: list[Case], versions: list[AdapterVersion]
) -> list[list[int]]:
    outputs = []
    for start in range(0, len(cases), PEFT_BATCH):
        batch = cases[start : start + PEFT_BATCH]
        longest = max(len(c.prompt_ids) for c in batch)
        ids = [[0] * (longest - len(c.prompt_ids)) + c.prompt_ids for c in batch]
        mask = [[0] * (longest - len(c.prompt_ids)) + [1] * len(c.prompt_ids) for c in batch]
        output = _generate(
            model,
            torch.tensor(ids, device=model.device),
            torch.tensor(mask, device=model.device),
            max(c.num_new for c in batch),
            adapter_names=[versions[c.adapter].name for c in batch],
        )
        outputs += [
            row[: c.num_new].tolist() for c, row in zip(batch, output[:, longest:], strict=True)
        ]
    return outputs


def _generate(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, num_new: int, **options: Any
) -> torch.Tensor:
    output: torch.Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=num_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return output


def _continuous_batching(manager: Any, cases: list[Case]) -> list[list[int]]:
    ids = [manager.add_request(c.prompt_ids, max_new_tokens=c.num_new) for c in cases]
    outputs: dict[str, list[int]] = {}
    while len(outputs) < len(cases):
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise SkippedError("transformers' thread ended")
        if result is not None and result.error is not None:
            raise SkippedError(f"transformers: {result.error}")
        if result is not None and result.is_finished():
            outputs[result.request_id] = list(result.generated_tokens)
    return [outputs[i] for i in ids]
