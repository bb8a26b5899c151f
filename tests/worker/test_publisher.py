"""What is published: rounded weights, a card with scores, and the current version."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from core.adapters import AdapterRegistry
from core.errors import InvalidError
from core.jobs import Evaluation, Scores
from core.volume import Volume
from tests.seals import make_seal
from tests.worker.trainers import RESULT
from worker.publisher import Publisher, adapter_card, round_lora
from worker.training import Precision, load_base

EVALUATION = Evaluation(
    metric="bleu",
    rows=18,
    against="yoda@1",
    base=Scores(bleu=18.25, chrf=65.77),
    current=Scores(bleu=41.0, chrf=70.0),
    candidate=Scores(bleu=57.08, chrf=75.09),
    gain=16.08,
    p_value=0.001,
    promoted=True,
    reason="Made current: it is better.",
    signatures={"BLEU": "nrefs:1|tok:13a"},
)


@pytest.fixture
def model(tiny_base: Path) -> PeftModel:
    base = load_base(tiny_base, Precision(torch.device("cpu"), torch.float32))
    return get_peft_model(base, LoraConfig(r=4, target_modules=["o_proj"], task_type="CAUSAL_LM"))


def test_weights_are_rounded_to_what_is_published(model: PeftModel) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.uniform_()
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    round_lora(model, RESULT)
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.dtype == torch.float32
            assert parameter.requires_grad
            assert torch.equal(parameter, trained[name].half().float())
    assert any(not torch.equal(p, trained[n]) for n, p in model.named_parameters() if n in trained)


def test_weights_beyond_float16(model: PeftModel) -> None:
    weight = next(p for p in model.parameters() if p.requires_grad)
    weight.data[0, 0] = 1e6
    with pytest.raises(InvalidError) as caught:
        round_lora(model, RESULT)
    assert caught.value.code == "training_diverged"


def test_card_tells_the_scores() -> None:
    card = adapter_card("yoda", make_seal(evaluation=EVALUATION))
    assert card.startswith("---\nlibrary_name: peft\nbase_model: a-base\n---\n# yoda\n")
    assert (
        "\n| bare base | 18.2 | 65.8 |\n| yoda@1 | 41.0 | 70.0 |\n| this version | 57.1 | 75.1 |\n"
        in card
    )
    assert (
        "On 18 rows of the dataset that it was not trained on. Made current: it is better." in card
    )
    assert "- BLEU: `nrefs:1|tok:13a`" in card

    first = EVALUATION.model_copy(update={"against": "base", "current": None})
    assert "| bare base | 18.2 | 65.8 |\n| this version | " in adapter_card(
        "yoda", make_seal(evaluation=first)
    )
    assert "Evaluation" not in adapter_card("yoda", make_seal())


def test_promotion_never_goes_back(volume: Volume, tiny_base: Path) -> None:
    registry = AdapterRegistry(volume)
    versions = []
    for _ in range(2):
        with volume.staged_folder() as staged:
            (staged / "dragoman.json").write_text(make_seal().model_dump_json())
            versions.append(registry.publish("yoda", staged))
    publisher = Publisher(volume, str(tiny_base), tiny_base)
    for version, current in ((0, 1), (1, 2), (0, 2)):
        publisher.promote(versions[version])
        assert registry.get("yoda").current == current
