"""What an adapter gains over the bare base: trains one through a running service, scores both on held-out rows.

    python -m benchmarks.quality pairs.csv --adapter yoda --columns sentence translation_extra \\
        --config '{"source": "en", "target": "en-x-yoda"}' --holdout 62

Rows are held out by a hash of their source text, so the same rows stay out whenever the data is the same; a source that
comes twice is on one side only. Scores are sacreBLEU's, with its tokeniser for Chinese where the target is Chinese.
"""

import argparse
import csv
import hashlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import sacrebleu

BATCH = 64
Pair = tuple[str, str]


def main() -> int:
    args = _parse_args()
    pairs = _read_pairs(args.file, args.columns)
    train, held_out = _split(pairs, args.holdout)
    train = train[: args.max_train or len(train)]
    print(f"{len(pairs)} pairs: {len(train)} to train on, {len(held_out)} held out", flush=True)
    with httpx.Client(base_url=args.url, timeout=600) as client:
        job = _train(client, train, args.adapter, json.loads(args.config))
        if job["status"] != "succeeded":
            print(f"the job {job['status']}: {job['error']}", file=sys.stderr)
            return 1
        version = f"{args.adapter}@{job['adapter_version']}"
        scores = {
            "bare base": _score(client, "base", held_out, job, args.base_prompt),
            version: _score(client, version, held_out, job),
        }
    print(f"\n| {len(held_out)} held-out rows | BLEU | chrF |\n|---|---|---|")
    for name, (bleu, chrf) in scores.items():
        print(f"| {name} | {bleu:.1f} | {chrf:.1f} |")
    return 0


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="CSV, or TSV by its name, with a header")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--columns", nargs=2, required=True, metavar=("SOURCE", "TARGET"))
    parser.add_argument("--config", default="{}", help="the job's config, JSON")
    parser.add_argument("--holdout", type=int, default=100, help="rows to hold out")
    parser.add_argument("--max-train", type=int, default=0, help="rows to train on; 0: all others")
    parser.add_argument(
        "--base-prompt", default="{text}", help="what the bare base is asked, with {text}"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    return parser.parse_args()


def _read_pairs(file: Path, columns: list[str]) -> list[Pair]:
    delimiter = "\t" if file.suffix == ".tsv" else ","
    with file.open(encoding="utf-8-sig", newline="") as handle:
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        reader = csv.DictReader(handle, delimiter=delimiter, quoting=quoting)
        return [(row[columns[0]], row[columns[1]]) for row in reader]


def _split(pairs: list[Pair], num_held_out: int) -> tuple[list[Pair], list[Pair]]:
    """-> rows to train on, rows held out; both in the order of the hash."""
    by_hash = sorted(pairs, key=lambda p: hashlib.sha256(p[0].encode()).digest())
    edge = num_held_out
    while edge < len(by_hash) and by_hash[edge][0] == by_hash[edge - 1][0]:
        edge += 1
    return by_hash[edge:], by_hash[:edge]


def _train(client: httpx.Client, pairs: list[Pair], adapter: str, config: Any) -> dict[str, Any]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["prompt", "completion"])
    writer.writerows(pairs)
    response = client.post(
        "/jobs",
        files={"file": (f"{adapter}.csv", buffer.getvalue().encode(), "text/csv")},
        data={"adapter": adapter, "config": json.dumps(config), "on_error": "skip"},
    )
    if response.is_error:
        raise SystemExit(response.text)
    url = response.headers["Location"]
    started = time.monotonic()
    step = -1
    while True:
        job: dict[str, Any] = client.get(url, params={"after_step": step}).json()
        if job["loss_curve"]["train"]:
            point = job["loss_curve"]["train"][-1]
            step = point["step"]
            progress = job["progress"]
            print(
                f"  {time.monotonic() - started:5.0f} s  step {step}/{progress['total_steps']}  loss "
                f"{point['loss']:.3f}  {progress['tokens_per_second'] or 0:,.0f} tokens/s",
                flush=True,
            )
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(5)


def _score(
    client: httpx.Client,
    adapter: str,
    pairs: list[Pair],
    job: dict[str, Any],
    prompt: str = "{text}",
) -> tuple[float, float]:
    hypotheses: list[str] = []
    for start in range(0, len(pairs), BATCH):
        texts = [prompt.replace("{text}", source) for source, _ in pairs[start : start + BATCH]]
        response = client.post("/translate", json={"q": texts, "adapter": adapter})
        if response.is_error:
            raise SystemExit(response.text)
        hypotheses += response.json()["translatedText"]
    references = [[target for _, target in pairs]]
    tokenize = "zh" if (job["config"]["target"] or "").startswith("zh") else "13a"
    bleu = sacrebleu.corpus_bleu(hypotheses, references, tokenize=tokenize)
    return bleu.score, sacrebleu.corpus_chrf(hypotheses, references).score


if __name__ == "__main__":
    sys.exit(main())
