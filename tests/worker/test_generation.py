"""Batched answers equal those that plain PEFT gives one by one, and the model is afterwards as it was before."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from core.adapter_version import CONFIG_FILE, WEIGHTS_FILE
from core.decoding import default_max_new_tokens
from core.errors import InvalidError
from core.prompt import Prompt, PromptRenderer, seal_prompt
from core.training_config import QuantizationSection
from tests.tiny_models import Architecture, make_tiny_model
from tests.worker.conftest import ROWS
from worker.generation import Generator, Way, second_adapter
from worker.training import Precision, load_base

CPU = Precision(torch.device("cpu"), torch.float32)
FLOAT32 = QuantizationSection(bnb_4bit_compute_dtype="float32")
TEXTS = [row.prompt for row in ROWS[::3]] + ["A much longer sentence, " * 6, "No.", "学而时习之"]
ARCHITECTURES: tuple[Architecture, ...] = ("phi3", "llama")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: make_tiny_model(root / name, name) for name in ARCHITECTURES}


def with_lora(base: Path, seed: int, rank: int = 4) -> PeftModel:
    model = load_base(base, CPU, FLOAT32)
    torch.manual_seed(seed)
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_dropout=0.5, target_modules="all-linear")
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


class Bench:
    """A model with a LoRA, and all that is needed to ask it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.model = with_lora(base, seed=1)
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        renderer = PromptRenderer(self.tokenizer, seal_prompt(Prompt(), self.tokenizer))
        self.way = Way(renderer, frozenset(renderer.stop_token_ids([3])))

    def generator(self, *, check: Callable[[], None] = lambda: None, **limits: int) -> Generator:
        limits = {"max_new_tokens": 1024, "context_length": 512} | limits
        return Generator(self.model, self.tokenizer, CPU, check=check, **limits)

    def one_by_one(self, model: PeftModel, texts: list[str]) -> list[str]:
        """As plain PEFT answers."""
        model.eval()
        answers = []
        for text in texts:
            ids = torch.tensor([self.way.renderer.prompt_ids(text)])
            config = GenerationConfig(
                do_sample=False,
                max_new_tokens=default_max_new_tokens(ids.shape[1]),
                eos_token_id=sorted(self.way.stop_token_ids),
                pad_token_id=0,
            )
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
            new = output[0, ids.shape[1] :]
            answers.append(self.tokenizer.decode(new, skip_special_tokens=True))
        return answers


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Bench:
    return Bench(bases[request.param])


@pytest.fixture
def phi3(bases: dict[str, Path]) -> Bench:
    return Bench(bases["phi3"])


@pytest.fixture
def saved(bases: dict[str, Path], tmp_path: Path) -> Path:
    """Another LoRA, of another rank, as it is published."""
    with_lora(bases["phi3"], seed=2, rank=2).save_pretrained(str(tmp_path / "saved"))
    return tmp_path / "saved"


def state(model: PeftModel) -> dict[str, Any]:
    inner = model.get_base_model()
    return {
        "training": [name for name, module in model.named_modules() if module.training],
        "trainable": [name for name, p in model.named_parameters() if p.requires_grad],
        "weights": {name: p.double().sum().item() for name, p in model.named_parameters()},
        "active": (model.active_adapter, list(model.peft_config)),
        "generation_config": inner.generation_config.to_dict(),
        "use_cache": inner.config.use_cache,
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


@pytest.fixture
def unchanged(phi3: Bench) -> Iterator[None]:
    before = state(phi3.model)
    yield
    assert state(phi3.model) == before


def test_batches_answer_as_plain_peft(bench: Bench) -> None:
    ours = bench.generator().answer(TEXTS, bench.way)
    assert ours == bench.one_by_one(bench.model, TEXTS)
    assert len(set(ours)) > 10  # the answers depend on the questions
    with bench.model.disable_adapter():
        base = bench.generator().answer(TEXTS, bench.way)
        assert base == bench.one_by_one(bench.model, TEXTS)
    assert base != ours


@pytest.mark.usefixtures("unchanged")
def test_nothing_to_translate(phi3: Bench) -> None:
    assert phi3.generator().answer(["", "…", "!?"], phi3.way) == ["", "…", "!?"]
    assert phi3.generator().answer([], phi3.way) == []


@pytest.mark.usefixtures("unchanged")
def test_limits(phi3: Bench) -> None:
    whole = phi3.generator().answer(TEXTS, phi3.way)
    short = phi3.generator(max_new_tokens=3).answer(TEXTS, phi3.way)
    assert short != whole
    assert all(w.startswith(s) for w, s in zip(whole, short, strict=True))
    num_tokens = len(phi3.way.renderer.prompt_ids(TEXTS[0]))
    tight = phi3.generator(context_length=num_tokens + 2)
    assert tight.answer([TEXTS[0]], phi3.way)[0] in whole[0][:20]
    assert phi3.generator(context_length=num_tokens).answer(TEXTS[:1], phi3.way) == [""]


@pytest.mark.usefixtures("unchanged")
def test_model_is_left_as_it_was(phi3: Bench) -> None:
    phi3.generator().answer(TEXTS[:3], phi3.way)


@pytest.mark.usefixtures("unchanged")
def test_stopped_from_outside(phi3: Bench) -> None:
    left = iter(range(5))

    def check() -> None:
        if next(left, None) is None:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        phi3.generator(check=check).answer(TEXTS, phi3.way)


def test_checkpoints_own_generation_config_is_not_used(phi3: Bench) -> None:
    before = phi3.generator().answer(TEXTS, phi3.way)
    theirs = GenerationConfig(
        do_sample=True, temperature=2.0, repetition_penalty=3.0, max_new_tokens=2
    )
    phi3.model.get_base_model().generation_config = theirs
    assert phi3.generator().answer(TEXTS, phi3.way) == before
    assert phi3.model.get_base_model().generation_config is theirs


def test_gradient_checkpointing(phi3: Bench) -> None:
    answers = phi3.generator().answer(TEXTS, phi3.way)
    inner = phi3.model.get_base_model()
    inner.gradient_checkpointing_enable({"use_reentrant": False})
    inner.config.use_cache = False
    before = state(phi3.model)
    assert phi3.generator().answer(TEXTS, phi3.way) == answers
    assert state(phi3.model) == before
    assert inner.is_gradient_checkpointing


def test_batches_become_smaller_where_memory_is_short(
    phi3: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = phi3.generator().answer(TEXTS, phi3.way)
    inner = phi3.model.get_base_model()
    generate, sizes, most = inner.generate, [], 4

    def short_of_memory(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        output: torch.Tensor = generate(input_ids=input_ids, **kwargs)
        return output

    monkeypatch.setattr(inner, "generate", short_of_memory)
    assert phi3.generator().answer(TEXTS, phi3.way) == before
    assert sizes == [14, 7, 3, 3, 3, 3, 2]
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        phi3.generator().answer(TEXTS[:2], phi3.way)


@pytest.mark.usefixtures("unchanged")
def test_second_adapter(phi3: Bench, saved: Path) -> None:
    trained = phi3.generator().answer(TEXTS, phi3.way)
    with second_adapter(phi3.model, saved):
        theirs = phi3.generator().answer(TEXTS, phi3.way)
    base = load_base(phi3.base, CPU, FLOAT32)
    alone = PeftModel.from_pretrained(base, str(saved))
    assert theirs == phi3.one_by_one(alone, TEXTS)
    assert theirs != trained
    assert phi3.generator().answer(TEXTS, phi3.way) == trained


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def _without_config(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()


def _torn(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])


def _half_of_the_layers(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    save_file({k: v for k, v in weights.items() if "layers.0" in k}, folder / WEIGHTS_FILE)


def _too_wide(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    wide = {k: torch.cat([v, v], dim=1) for k, v in weights.items()}
    save_file(wide, folder / WEIGHTS_FILE)


def _other_layers(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"target_modules": ["c_attn"]}))


def _junk(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "damage",
    [
        _without_weights,
        _without_config,
        _torn,
        _half_of_the_layers,
        _too_wide,
        _other_layers,
        _junk,
        _gone,
    ],
)
def test_second_adapter_that_is_broken(
    phi3: Bench, saved: Path, damage: Callable[[Path], None]
) -> None:
    damage(saved)
    with (
        pytest.raises(InvalidError) as caught,
        second_adapter(phi3.model, saved),
    ):
        raise AssertionError("it was loaded")
    assert caught.value.code == "adapter_broken"
