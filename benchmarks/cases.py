"""What is asked: requests, and the random adapters that they name."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from core.adapter_version import SEAL_FILE, AdapterVersion, Seal, content_sha256
from core.adapters import AdapterRegistry
from core.base_model import fingerprint
from core.prompt import PromptRenderer, SealedPrompt
from core.volume import Volume

MIXED_RANKS = (8, 16, 4, 8, 32, 8, 2, 16)
_WORDS = (
    "the a old young river mountain soldier winter letter garden never often slowly keeps finds under "
    "over bread lamp voice road stone morning answer window carries remembers and but with"
)


@dataclass(frozen=True)
class Case:
    """One request: a text for adapter number `adapter`, and how many tokens it wants."""

    text: str
    prompt_ids: list[int]
    adapter: int
    num_new: int


def make_cases(renderer: PromptRenderer, num_requests: int, num_adapters: int) -> list[Case]:
    rng, words = random.Random(0), _WORDS.split()
    cases = []
    for i in range(num_requests):
        text = " ".join(rng.choices(words, k=rng.randrange(6, 22)))
        cases.append(Case(text, renderer.prompt_ids(text), i % num_adapters, rng.randrange(8, 41)))
    return cases


def make_adapters(
    volume: Volume,
    base: Any,
    ranks: list[int],
    prompt: SealedPrompt,
    folder: Path,
) -> list[AdapterVersion]:
    """An adapter of each rank, published as a job would. `base`: the model in `folder`.

    A stop token outside the text: none ends early.
    """
    registry = AdapterRegistry(volume)
    base_fingerprint = fingerprint(folder)
    versions = []
    for i, rank in enumerate(ranks):
        torch.manual_seed(i)
        config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        staged = volume.root / f"adapter-{i}"
        model.save_pretrained(staged)
        model.unload()
        seal = Seal(
            base_fingerprint=base_fingerprint,
            base_model=str(folder),
            prompt=prompt,
            stop_token_ids=[base.config.vocab_size - 1],
            source="en",
            target="en",
            dataset_id="none",
            dataset_sha256="",
            dataset_rows=0,
            job_id="none",
            created_at=datetime.now(UTC),
            config={},
            content_sha256=content_sha256(staged),
        )
        (staged / SEAL_FILE).write_text(seal.model_dump_json())
        version = registry.publish(f"bench{i}", staged)
        registry.promote(version.name, version.version)
        versions.append(version)
    return versions
