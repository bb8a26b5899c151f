"""One rendering for training and serving, through real tokenizers and chat templates."""

import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.base_model import EMBEDDED
from core.errors import InvalidError
from core.prompt import Prompt, PromptRenderer, SealedPrompt, seal_prompt
from tests.tiny_models import make_tiny_model

TEXTS = [
    "The sky is dark.",
    " spaces around ",
    "two\nlines",
    "braces {text} {} {{x}}",
    "学而时习之",
    "🙂",
    "",
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    llama: Path = make_tiny_model(tmp_path_factory.mktemp("llama"), "llama")
    return {
        "phi3": AutoTokenizer.from_pretrained(EMBEDDED),
        "llama": AutoTokenizer.from_pretrained(llama),
    }


@pytest.fixture(params=["phi3", "llama"])
def tokenizer(
    request: pytest.FixtureRequest, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    return tokenizers[request.param]


def renderer(tokenizer: PreTrainedTokenizerBase, **prompt: str) -> PromptRenderer:
    return PromptRenderer(tokenizer, seal_prompt(Prompt(**prompt), tokenizer))


@pytest.mark.parametrize("text", TEXTS)
def test_training_begins_with_the_prompt_of_serving(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    """Serving has only the seal, read back from a file; training has the prompt of the job."""
    prompt = Prompt(system="You are Yoda.", template="Say as Yoda: {text}")
    training = PromptRenderer(tokenizer, seal_prompt(prompt, tokenizer))
    stored = seal_prompt(prompt, tokenizer).model_dump_json()
    serving = PromptRenderer(tokenizer, SealedPrompt.model_validate_json(stored))

    prompt_ids = serving.prompt_ids(text)
    assert training.prompt_ids(text) == prompt_ids
    # The whole conversation, as the model learns it, is what the tokenizer makes of its text.
    learnt = prompt_ids + training.completion_ids(text, "Dark, the sky is.")
    assert tokenizer.decode(learnt).startswith(tokenizer.decode(prompt_ids))
    assert "Dark, the sky is." in tokenizer.decode(learnt[len(prompt_ids) :])


def test_phi3_style(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    phi3 = renderer(tokenizers["phi3"], system="S", template="T: {text}")
    assert phi3.prompt_text("x") == "<|system|>\nS<|end|>\n<|user|>\nT: x<|end|>\n<|assistant|>\n"
    completion = tokenizers["phi3"].decode(phi3.completion_ids("x", "y"))
    assert completion.strip() == "y<|end|>\n<|endoftext|>"


def test_llama_style(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """Its template writes a date and trims: neither may differ between training and serving."""
    llama = renderer(tokenizers["llama"], template=" {text} ")
    text = llama.prompt_text("  x  ")
    assert "Today Date: 26 Jul 2024\n" in text
    assert "user<|end_header_id|>\n\nx<|eot_id|>" in text
    assert time.strftime("%Y") == "2024" or time.strftime("%Y") not in text
    assert llama.prompt_ids("x")[0] == tokenizers["llama"].bos_token_id
    assert llama.prompt_ids("x").count(tokenizers["llama"].bos_token_id) == 1
    assert tokenizers["llama"].decode(llama.completion_ids("x", " y ")).strip() == "y<|eot_id|>"


def test_end_of_turn_stops(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    phi3 = tokenizers["phi3"]
    end, eos = phi3.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert renderer(phi3).stop_token_ids([]) == sorted([end, eos])
    llama = tokenizers["llama"]
    eot, end_of_text = llama.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert renderer(llama).stop_token_ids([end_of_text]) == sorted([eot, end_of_text])


def test_tokenizer_without_a_template() -> None:
    """Such a model still gets turns; and a newline, a token of its own here, does not end an answer."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.chat_template = None
    plain = renderer(tokenizer)
    assert plain.prompt_text("x") == "user: x\nassistant: "
    assert tokenizer.decode(plain.completion_ids("x", "y")).strip() == "y\n<|endoftext|>"
    assert plain.stop_token_ids([]) == [tokenizer.eos_token_id]


def test_template_that_rewrites_the_past(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    sealed = SealedPrompt(chat_template=template)
    with pytest.raises(InvalidError) as caught:
        PromptRenderer(tokenizers["phi3"], sealed).completion_ids("x", "y")
    assert caught.value.code == "chat_template_unusable"


def test_seal_keeps_the_template_of_its_day(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    llama = tokenizers["llama"]
    sealed = seal_prompt(Prompt(), tokenizers["phi3"])
    assert PromptRenderer(llama, sealed).prompt_text("x") == "<|user|>\nx<|end|>\n<|assistant|>\n"


def test_template_must_hold_the_text() -> None:
    with pytest.raises(ValidationError, match=r"must contain \{text\}"):
        Prompt(template="translate")
    assert Prompt(template="{text} = {text}").messages("a")[0]["content"] == "a = a"
    assert Prompt(template="{x} {text}").messages("{y}")[0]["content"] == "{x} {y}"


TURNS = [("Hi there.", "Yo."), ("The sky is dark.", "Dark, it is."), ("x", "y")]


def test_conversation_is_cut_into_questions_and_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    training = renderer(tokenizer, system="Be terse.", template="T: {text}")
    segments = training.segments(TURNS)
    assert [s.is_answer for s in segments] == [False, True] * 3
    assert segments[0].ids == training.prompt_ids("Hi there.")
    whole = "".join(s.text for s in segments)
    assert whole.count("Be terse.") == 1
    assert [i for s in segments for i in s.ids] == tokenizer.encode(whole, add_special_tokens=False)
    for (question, answer), asked, answered in zip(
        TURNS, segments[::2], segments[1::2], strict=True
    ):
        assert f"T: {question}" in asked.text
        assert answered.text.startswith(answer)
        assert tokenizer.decode(answered.ids) == answered.text


def test_every_answer_ends_with_the_end_of_its_turn(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    """Phi-3's template writes <|endoftext|> after the last answer only; it must not be split off from the others."""
    phi3 = [s.text for s in renderer(tokenizers["phi3"]).segments(TURNS) if s.is_answer]
    assert phi3 == ["Yo.<|end|>\n", "Dark, it is.<|end|>\n", "y<|end|>\n<|endoftext|>"]
    llama = [s.text for s in renderer(tokenizers["llama"]).segments(TURNS) if s.is_answer]
    assert llama == ["Yo.<|eot_id|>", "Dark, it is.<|eot_id|>", "y<|eot_id|>"]


@pytest.mark.parametrize("text", ["a\0{text}", "half a pair \ud800 {text}"])
def test_a_prompt_is_well_formed_text(text: str) -> None:
    for values in ({"template": text}, {"system": text}):
        with pytest.raises(ValidationError, match=r"NUL character|surrogate pair|unicode string"):
            Prompt.model_validate(values)
