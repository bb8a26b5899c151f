"""How much faster held-out rows are answered in the evaluation's batches than one by one with plain generate.

    python -m benchmarks.evaluate --rows 60

Both ways in one run, in turns, on the embedded base and its adapter `yoda`: the same nf4 weights, prompts and limits.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig

from core.adapter_version import SEAL_FILE, Seal
from core.base_model import BOXED_ADAPTERS, EMBEDDED
from core.decoding import default_max_new_tokens
from core.prompt import PromptRenderer
from core.settings import Settings
from worker.generation import Generator, Way
from worker.training import choose_precision, load_base

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "yoda.csv"


def main() -> None:
    args = _parse_args()
    settings = Settings(_env_file=None)
    precision = choose_precision(settings)
    folder = BOXED_ADAPTERS / "yoda"
    model = PeftModel.from_pretrained(load_base(EMBEDDED, precision), str(folder))
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    seal = Seal.model_validate_json((folder / SEAL_FILE).read_bytes())
    way = Way(PromptRenderer(tokenizer, seal.prompt), frozenset(seal.stop_token_ids))
    generator = Generator(
        model,
        tokenizer,
        precision,
        max_new_tokens=settings.max_new_tokens,
        context_length=model.config.max_position_embeddings,
        check=lambda: None,
    )
    with EXAMPLES.open(encoding="utf-8", newline="") as file:
        texts = [row["prompt"] for row in csv.DictReader(file)][: args.rows]

    def one_by_one() -> list[str]:
        return [_generate(model, tokenizer, way, text) for text in texts]

    def in_batches() -> list[str]:
        return generator.answer(texts, way)

    in_batches()  # warms up
    ratios = []
    for _ in range(args.rounds):
        (slow_s, theirs), (fast_s, ours) = _timed(one_by_one), _timed(in_batches)
        ratios.append(slow_s / fast_s)
        same = sum(a == b for a, b in zip(theirs, ours, strict=True))
        print(
            f"{len(texts)} rows: one by one {slow_s:.1f} s, in batches {fast_s:.1f} s: {ratios[-1]:.1f}x; "
            f"{same} answers are the same",
            flush=True,
        )
    print(f"median: {sorted(ratios)[len(ratios) // 2]:.1f}x on {precision.device}")


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _timed(answer: Callable[[], list[str]]) -> tuple[float, list[str]]:
    started_s = time.perf_counter()
    answers = answer()
    return time.perf_counter() - started_s, answers


def _generate(model: PeftModel, tokenizer: AutoTokenizer, way: Way, text: str) -> str:
    """As plain PEFT and transformers answer."""
    model.eval()
    ids = torch.tensor([way.renderer.prompt_ids(text)], device=model.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=default_max_new_tokens(ids.shape[1]),
        eos_token_id=sorted(way.stop_token_ids),
        pad_token_id=0,
    )
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    answer: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return answer


if __name__ == "__main__":
    main()
