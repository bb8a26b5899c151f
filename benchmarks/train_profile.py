"""Where the time of a training step goes."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle, islice
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

NUM_STEPS = 3
# Parts of kernels' names (lower case), in the order in which they are looked for.
_KINDS = {
    "dequantise": ("dequant",),
    "attention": ("flash", "fmha", "attention", "cudnn_sdpa"),
    "optimiser": ("optimizer", "adam", "multi_tensor"),
    "matmul": ("gemm", "gemv", "cutlass", "nvjet", "xmma", "cublas", "aten::mm", "aten::addmm"),
    "copy and cast": ("copy", "memcpy", "memset", "fill"),
}


def profile_steps(
    trainer: Any, attention: Callable[[Any], AbstractContextManager[None]] | None
) -> dict[str, float]:
    """Some more steps of a trained trainer: phases in ms, kinds of kernels in % of the device's busy time.

    `busy %` is that time's share of the step's: low where the device waits for the host to launch.
    """
    is_cuda = torch.cuda.is_available() and trainer.args.device.type == "cuda"
    batches = list(islice(trainer.get_train_dataloader(), NUM_STEPS))
    with attention(trainer) if attention is not None else nullcontext():
        for batch in batches:  # allocator and kernels warm again
            _step(trainer, dict(batch), is_cuda)
        phases = [_step(trainer, dict(batch), is_cuda) for batch in batches]
        activities = [ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
        started_s = time.perf_counter()
        with profile(activities=activities) as profiler:
            for batch in islice(cycle(batches), NUM_STEPS):
                _step(trainer, dict(batch), is_cuda)
        profiled_ms = (time.perf_counter() - started_s) * 1e3 / NUM_STEPS
    shares, busy_ms = _kinds(profiler, is_cuda)
    total = {name: sum(p[name] for p in phases) / len(phases) for name in phases[0]}
    step_ms = sum(total.values())
    num_tokens = sum(_num_tokens(batch) for batch in batches) / len(batches)
    return {
        "tokens": num_tokens,
        "ms": step_ms,
        **{f"{name} ms": ms for name, ms in total.items()},
        **({"busy %": 100 * busy_ms / min(step_ms, profiled_ms)} if is_cuda else {}),
        **{f"{kind} %": share for kind, share in shares.items()},
    }


def _step(trainer: Any, batch: dict[str, Any], is_cuda: bool) -> dict[str, float]:
    """One step, its phases in ms."""
    marks = [_now_ms(is_cuda)]
    trainer.model.train()
    inputs = trainer._prepare_inputs(batch)
    marks.append(_now_ms(is_cuda))
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model_wrapped, inputs, num_items_in_batch=1000)
    marks.append(_now_ms(is_cuda))
    trainer.accelerator.backward(loss)
    marks.append(_now_ms(is_cuda))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    marks.append(_now_ms(is_cuda))
    names = ("data", "forward", "backward", "optimiser")
    return {name: marks[i + 1] - marks[i] for i, name in enumerate(names)}


def _now_ms(is_cuda: bool) -> float:
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3


def _kinds(profiler: Any, is_cuda: bool) -> tuple[dict[str, float], float]:
    """-> each kind's share in %, and all kernels' time in ms a step."""
    sums = dict.fromkeys([*_KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        if is_cuda and event.device_type != DeviceType.CUDA:
            continue
        micros = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        name = event.key.lower()
        kind = next((k for k, parts in _KINDS.items() if any(p in name for p in parts)), "other")
        sums[kind] += micros
    busy = sum(sums.values()) or 1.0
    return {kind: 100 * micros / busy for kind, micros in sums.items()}, busy / 1e3 / NUM_STEPS


def _num_tokens(batch: dict[str, Any]) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["input_ids"].numel()
