"""Batched equals one by one equals plain PEFT, token for token."""

import json
import random

import pytest

from core.adapter_version import AdapterVersion
from tests.app.harness import (
    load_nf4,
    load_reference,
    load_unquantised,
    make_adapter,
    make_request,
    peft_greedy,
    start_engine,
)
from tests.app.tiny import Tiny, make_tiny
from tests.tiny_models import make_tiny_model

NUM_REQUESTS = 18
NUM_NEW = 10


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
@pytest.mark.parametrize("weights", ["fp32", "unpacked", "packed"])
def test_batched_equals_one_by_one_equals_peft(
    tmp_path_factory: pytest.TempPathFactory, architecture: str, weights: str
) -> None:
    tiny = make_tiny(tmp_path_factory.mktemp("parity"), architecture, nf4=weights != "fp32")
    rng = random.Random(0)
    cases: list[tuple[list[int], AdapterVersion | None]] = []
    choices = [None, *tiny.adapters]
    for i in range(NUM_REQUESTS):
        # Up to 150 tokens against 64 prompt tokens a step: prompts are read in several chunks.
        prompt = [rng.randrange(10, 12_000) for _ in range(rng.choice([1, 7, 20, 64, 65, 150]))]
        cases.append((prompt, choices[i % len(choices)]))
    expected = [peft_greedy(tiny.reference, p, a, NUM_NEW) for p, a in cases]
    assert len({tuple(e) for e in expected}) > NUM_REQUESTS // 2, "the cases tell nothing apart"

    base = load_unquantised(tiny.folder) if weights == "fp32" else load_nf4(tiny.folder, weights)
    engine = start_engine(base)
    try:
        requests = [make_request(p, a, max_new_tokens=NUM_NEW) for p, a in cases]
        engine.submit(*(r.sequence for r in requests))
        assert [r.result().token_ids for r in requests] == expected
        alone = []
        for prompt, adapter in cases:
            request = make_request(prompt, adapter, max_new_tokens=NUM_NEW)
            engine.submit(request.sequence)
            alone.append(request.result().token_ids)
        assert alone == expected
    finally:
        engine.stop()


@pytest.mark.parametrize("sliding_window", [None, 16])
@pytest.mark.parametrize("has_decoder", [True, False], ids=["own decoder", "model's code"])
def test_both_forward_passes_equal_peft(
    tmp_path_factory: pytest.TempPathFactory, sliding_window: int | None, has_decoder: bool
) -> None:
    """A window of 16 is passed in the prompt and in the answer."""
    folder = tmp_path_factory.mktemp("attend")
    make_tiny_model(folder / "base", "phi3")
    config = json.loads((folder / "base" / "config.json").read_text())
    config["sliding_window"] = sliding_window
    (folder / "base" / "config.json").write_text(json.dumps(config))
    reference = load_reference(folder / "base", nf4=False)
    adapter = make_adapter(folder, reference, "a")
    rng = random.Random(1)
    prompts = [[rng.randrange(10, 12_000) for _ in range(n)] for n in (3, 14, 16, 17, 40, 90)]
    expected = [peft_greedy(reference, p, adapter, 20) for p in prompts]
    base = load_unquantised(folder / "base")
    engine = start_engine(base)
    assert engine.way == "own decoder"
    if not has_decoder:
        engine._forward._decoder = None
    try:
        requests = [make_request(p, adapter, max_new_tokens=20) for p in prompts]
        engine.submit(*(r.sequence for r in requests))
        assert [r.result().token_ids for r in requests] == expected
    finally:
        engine.stop()


def test_adapters_change_the_answers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Guards the test above: with adapters that do nothing it would pass whatever the bank did."""
    tiny = make_tiny(tmp_path_factory.mktemp("differ"), "phi3", nf4=True)
    prompt = [100, 200, 300]
    answers = [peft_greedy(tiny.reference, prompt, a, NUM_NEW) for a in [None, *tiny.adapters]]
    assert len({tuple(a) for a in answers}) == len(answers)


def test_a_step_ahead_gives_the_same_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A GPU is given its next step before the tokens of the last are known; here on the CPU."""
    tiny = make_tiny(tmp_path_factory.mktemp("ahead"), "llama", nf4=True)
    rng = random.Random(2)
    cases = []
    for i in range(NUM_REQUESTS):
        prompt = [rng.randrange(10, 12_000) for _ in range(rng.choice([1, 7, 65, 150]))]
        cases.append((prompt, tiny.adapters[i % 3], rng.randrange(1, 12)))
    expected = [peft_greedy(tiny.reference, *case) for case in cases]
    stops = [answer[-1:] if i % 3 == 0 else [] for i, answer in enumerate(expected)]
    engine = start_engine(load_nf4(tiny.folder), max_running=7)
    engine._forward.is_asynchronous = True
    try:
        requests = [
            make_request(p, a, max_new_tokens=20 if stop else n, stop=stop)
            for (p, a, n), stop in zip(cases, stops, strict=True)
        ]
        drawn = make_request([5, 6, 7], None, max_new_tokens=15, temperature=1.0, seed=1)
        engine.submit(*(r.sequence for r in requests), drawn.sequence)
        num_chosen = 15
        for request, answer, stop in zip(requests, expected, stops, strict=True):
            num_chosen += answer.index(stop[0]) + 1 if stop else len(answer)
            kept = answer[: answer.index(stop[0])] if stop else answer
            assert request.result().token_ids == kept
        assert len(drawn.result().token_ids) == 15
        assert engine.stats().num_free_cache_tokens == 4096 - 8
        assert engine.stats().num_generated_tokens == num_chosen
    finally:
        engine.stop()


@pytest.mark.parametrize("has_decoder", [True, False], ids=["own decoder", "model's code"])
def test_a_step_ahead_of_a_prompt_that_yields_no_token_yet(tiny: Tiny, has_decoder: bool) -> None:
    engine = start_engine(load_nf4(tiny.folder))
    engine._forward.is_asynchronous = True
    if not has_decoder:
        engine._forward._decoder = None
    try:
        prompt = list(range(20, 170))  # three steps of 64 tokens at most
        request = make_request(prompt, tiny.adapters[0], max_new_tokens=5)
        engine.submit(request.sequence)
        expected = peft_greedy(tiny.reference, prompt, tiny.adapters[0], 5)
        assert request.result().token_ids == expected
    finally:
        engine.stop()
