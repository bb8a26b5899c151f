"""Rows become token ids: exactly the prompt that serving will send, then the answer."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.base_model import EMBEDDED
from core.datasets import Row
from core.errors import InvalidError
from core.prompt import Prompt, PromptRenderer, seal_prompt
from tests.tiny_models import make_tiny_model
from worker.dataset import build_training_data

SHORT_ROW = Row(prompt="The sky is dark.", completion="Dark, the sky is.")
LONG_ROW = Row(prompt="word " * 100, completion="short")
LONG_ANSWER = Row(prompt="short", completion="word " * 100)


@pytest.fixture(scope="module", params=["phi3", "llama"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    if request.param == "phi3":
        return AutoTokenizer.from_pretrained(EMBEDDED)
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("llama"), "llama")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def renderer(tokenizer: PreTrainedTokenizerBase) -> PromptRenderer:
    return PromptRenderer(tokenizer, seal_prompt(Prompt(template="As Yoda: {text}"), tokenizer))


def test_prompt_then_completion(renderer: PromptRenderer) -> None:
    data = build_training_data([SHORT_ROW], renderer, 512)
    row = data.dataset[0]
    prompt_ids = renderer.prompt_ids(SHORT_ROW.prompt)
    completion_ids = renderer.completion_ids(SHORT_ROW.prompt, SHORT_ROW.completion)
    assert row["input_ids"] == prompt_ids + completion_ids
    assert row["completion_mask"] == [0] * len(prompt_ids) + [1] * len(completion_ids)
    assert (data.num_rows, data.num_too_long) == (1, 0)


def test_long_rows_are_left_out_whole(renderer: PromptRenderer) -> None:
    data = build_training_data([LONG_ROW, SHORT_ROW, LONG_ANSWER], renderer, 64)
    assert (data.num_rows, data.num_too_long) == (1, 2)
    assert (
        data.dataset["input_ids"][:]
        == build_training_data([SHORT_ROW], renderer, 64).dataset["input_ids"][:]
    )


def test_longest_row_that_fits(renderer: PromptRenderer) -> None:
    length = len(build_training_data([SHORT_ROW], renderer, 512).dataset[0]["input_ids"])
    assert build_training_data([SHORT_ROW], renderer, length).num_rows == 1
    with pytest.raises(InvalidError, match=f"the shortest has {length}: raise") as caught:
        build_training_data([SHORT_ROW, LONG_ROW], renderer, length - 1)
    assert caught.value.code == "dataset_too_long"
    assert f"max_length={length - 1} " in caught.value.message


def test_no_rows(renderer: PromptRenderer) -> None:
    with pytest.raises(InvalidError) as caught:
        build_training_data([], renderer, 512)
    assert caught.value.code == "dataset_empty"
