"""Fine-tuning: the plain TRL script of the recipe `yoda-phi3` against presets of this service, in one run.

The same base model, rows and epochs, hence the same tokens; each way in a process of its own. Tokens are counted without
padding and timed after the first steps; the held-out loss is over the same rows' answers, computed by the same code.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.random_model import make_phi3_mini
from benchmarks.train_plain import plain_trainer
from benchmarks.train_profile import profile_steps
from core.base_model import EMBEDDED
from core.datasets import Row
from core.holdout import HoldOut
from core.prompt import Prompt, PromptRenderer, seal_prompt

ROOT = Path(__file__).resolve().parents[1]
NUM_WARM_UP_STEPS = 3
HELD_OUT_SHARE = 0.1


@dataclass
class Result:
    """What one way did. `tokens_per_second` is without padding and without the first steps."""

    way: str
    steps: int
    seconds: float
    tokens_per_second: float
    peak_mb: float
    first_loss: float
    held_out_before: float
    held_out_after: float
    profile: dict[str, float]
    notes: list[str]


def main() -> int:
    args = _parse_args()
    if args.way:
        result = _run(args)
        args.result.write_text(json.dumps(asdict(result)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        base = EMBEDDED
        if args.base == "phi3-mini":
            print("writing random weights at Phi-3-mini's shape", flush=True)
            base = make_phi3_mini(Path(scratch) / "phi3-mini")
        ways = {"plain": "", **dict(item.split("=", 1) for item in args.ours)}
        results = []
        for way, config in ways.items():
            result = _spawn(args, way, config, base, Path(scratch))
            if result is not None:
                results.append(result)
                print(f"{way}: {result.tokens_per_second:,.0f} tokens/s", flush=True)
    if not results or results[0].way != "plain":
        return 1
    _print_table(results)
    return 0 if len(results) == len(ways) else 1


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", choices=["embedded", "phi3-mini"], default="embedded")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "yoda.csv")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--ours",
        action="append",
        metavar="NAME=CONFIG",
        help="a job's config as JSON, may be repeated; default: the preset fast",
    )
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--config", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.ours = args.ours or ['fast={"preset": "fast"}']
    return args


def _spawn(
    args: argparse.Namespace, way: str, config: str, base: Path, scratch: Path
) -> Result | None:
    """A process of its own: memory of one way must not count for another."""
    result = scratch / f"{way}.json"
    command = [
        *(sys.executable, "-m", "benchmarks.train", "--way", way, "--config", config),
        *("--folder", str(base), "--data", str(args.data.resolve()), "--device", args.device),
        *("--epochs", str(args.epochs), "--result", str(result)),
        *(["--no-profile"] if args.no_profile else []),
    ]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        print(f"{way}: failed", file=sys.stderr)
        return None
    return Result(**json.loads(result.read_text()))


class Clock(TrainerCallback):  # type: ignore[misc]
    """When steps end; the device is waited for where the clock starts and where it stops."""

    def __init__(self) -> None:
        self.started_s = self.ended_s = 0.0
        self.warm_tokens = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == NUM_WARM_UP_STEPS:
            _wait_for_device()
            self.warm_tokens = int(state.num_input_tokens_seen)
            self.started_s = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        _wait_for_device()
        self.ended_s = time.perf_counter()


def _run(args: argparse.Namespace) -> Result:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    renderer = PromptRenderer(tokenizer, seal_prompt(Prompt(), tokenizer))
    rows = _read_rows(args.data)
    hold_out = HoldOut.choose([row.prompt for row in rows], HELD_OUT_SHARE)
    train = [row for row in rows if not hold_out.holds(row.prompt)]
    held_out = [row for row in rows if hold_out.holds(row.prompt)]
    is_cuda = args.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", 0) if is_cuda else torch.device("cpu")
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        if args.way == "plain":
            trainer = plain_trainer(
                args.folder,
                tokenizer,
                train,
                num_epochs=args.epochs,
                device=device,
                output_dir=scratch,
                callbacks=[clock],
            )
            notes: list[str] = []
            train_call, attention = trainer.train, None
        else:
            trainer, notes = _our_trainer(
                args, tokenizer, renderer, train, device, clock, Path(scratch)
            )
            from worker.training import run_training, training_attention

            train_call, attention = (lambda: run_training(trainer)), training_attention
        before = held_out_loss(trainer.model, held_out, renderer, device)
        _reset_peak()
        train_call()
        peak_mb = _peak_mb()
        after = held_out_loss(trainer.model, held_out, renderer, device)
        profile = {} if args.no_profile else profile_steps(trainer, attention)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    num_tokens = sum(_num_tokens(row, renderer) for row in train) * args.epochs
    num_steps = trainer.state.max_steps
    if num_steps <= NUM_WARM_UP_STEPS:
        raise SystemExit(f"{num_steps} steps are too few to be timed; raise --epochs")
    seconds = clock.ended_s - clock.started_s
    timed = num_tokens * (num_steps - NUM_WARM_UP_STEPS) / num_steps
    return Result(
        way=args.way,
        steps=num_steps,
        seconds=seconds,
        tokens_per_second=timed / seconds,
        peak_mb=peak_mb,
        first_loss=losses[0],
        held_out_before=before,
        held_out_after=after,
        profile=profile,
        notes=notes,
    )


def _our_trainer(
    args: argparse.Namespace,
    tokenizer: Any,
    renderer: PromptRenderer,
    rows: list[Row],
    device: torch.device,
    clock: Clock,
    scratch: Path,
) -> tuple[Any, list[str]]:
    from core.settings import Settings
    from core.training_config import JobConfig
    from worker.dataset import build_training_data
    from worker.resolve import resolve_config
    from worker.training import build_trainer, choose_precision, load_base

    asked = json.loads(args.config)
    asked.setdefault("training", {}).setdefault("num_train_epochs", args.epochs)
    config = JobConfig.model_validate(asked)
    settings = Settings(_env_file=None, device=device.type)
    precision = choose_precision(settings, config)
    config, warnings = resolve_config(
        config, base_folder=args.folder, precision=precision, num_rows=len(rows)
    )
    print(f"{args.way}: {config.model_dump_json(include={'lora', 'quantization', 'training'})}")
    trainer = build_trainer(
        load_base(args.folder, precision, config.quantization),
        tokenizer,
        build_training_data(rows, renderer, config.training),
        config,
        precision=precision,
        output_dir=scratch / "checkpoints",
        callbacks=[clock],
        base_folder=args.folder,
    )
    return trainer, warnings


@torch.no_grad()
def held_out_loss(
    model: Any, rows: list[Row], renderer: PromptRenderer, device: torch.device
) -> float:
    """The mean over the tokens of the rows' answers; one row after the other, so without padding."""
    was_training = model.training
    model.eval()
    loss_sum, num_tokens = 0.0, 0
    for row in rows:
        prompt_ids = renderer.prompt_ids(row.prompt)
        answer_ids = renderer.completion_ids(row.prompt, row.completion)
        ids = torch.tensor([prompt_ids + answer_ids], device=device)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
        target = ids[0, len(prompt_ids) :]
        loss_sum += torch.nn.functional.cross_entropy(
            logits.float(), target, reduction="sum"
        ).item()
        num_tokens += len(target)
    model.train(was_training)
    return loss_sum / num_tokens


def _read_rows(file: Path) -> list[Row]:
    """The first two columns of a CSV with a header."""
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle)
        next(reader)
        return [Row(prompt=line[0], completion=line[1]) for line in reader if len(line) > 1]


def _num_tokens(row: Row, renderer: PromptRenderer) -> int:
    return sum(len(s.ids) for s in renderer.segments([(row.prompt, row.completion)]))


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> float:
    """Of GPU memory while training, or of the process on a CPU; MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print_table(results: list[Result]) -> None:
    plain = results[0]
    print(
        "\n| way | steps | tokens/s | ratio | peak MB | ratio | held-out loss before | after |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for r in results:
        print(
            f"| {r.way} | {r.steps} | {r.tokens_per_second:,.0f} "
            f"| {r.tokens_per_second / plain.tokens_per_second:.2f}x | {r.peak_mb:,.0f} "
            f"| {r.peak_mb / plain.peak_mb:.2f}x | {r.held_out_before:.3f} | {r.held_out_after:.3f} |"
        )
    names = list(dict.fromkeys(name for r in results for name in r.profile))
    if names:
        print(f"\n| a step | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for r in results:
            print(f"| {r.way} | {' | '.join(f'{r.profile.get(n, 0):,.4g}' for n in names)} |")
    for r in results:
        for note in r.notes:
            print(f"{r.way}: {note}")


if __name__ == "__main__":
    sys.exit(main())
