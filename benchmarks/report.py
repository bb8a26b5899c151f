"""What a run prints: where it ran, its table, and how many answers were the same."""

import os
import platform

import bitsandbytes
import peft
import torch
import transformers

from benchmarks.measuring import Result


def describe_machine() -> str:
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {os.cpu_count()} cores"
    )
    return (
        f"{device}; Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, peft {peft.__version__}, bitsandbytes {bitsandbytes.__version__}"
    )


def print_table(results: list[Result]) -> None:
    slowest, batched = results[0].tokens_per_second, results[1].tokens_per_second
    print("\n| way | tokens/s | against (a) | against (b) |\n|---|---|---|---|")
    for result in results:
        speed = result.tokens_per_second
        print(f"| {result.way} | {speed:,.0f} | {speed / slowest:.1f}x | {speed / batched:.1f}x |")


def print_agreement(reference: Result, ours: Result) -> None:
    """Equal unless rounding decides: bitsandbytes' kernels differ by batch shape on some processors."""
    equal = sum(a == b for a, b in zip(reference.outputs, ours.outputs, strict=False))
    print(f"\nanswers equal to (a), token for token: {equal} of {len(reference.outputs)}")
