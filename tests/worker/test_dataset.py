"""Rows become token ids: exactly the prompt that serving will send, then the answer; and what of it is learnt."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import billiard
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.base_model import EMBEDDED
from core.datasets import Exchange, Row
from core.errors import InvalidError
from core.prompt import Prompt, PromptRenderer, seal_prompt
from core.training_config import TrainingSection
from tests.tiny_models import make_tiny_model
from worker.dataset import IGNORED, TrainingData, build_training_data

SHORT_ROW = Row(prompt="The sky is dark.", completion="Dark, the sky is.")
LONG_ROW = Row(prompt="word " * 100, completion="short")
LONG_ANSWER = Row(prompt="short", completion="word " * 100)
DIALOGUE = Row(
    prompt="The sky is dark.",
    completion="Dark, the sky is.",
    further=(
        Exchange(prompt="And the sea?", completion="Deep, the sea is."),
        Exchange(prompt="And the road?", completion="Long, the road is."),
    ),
)


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


def build(rows: Iterable[Row], renderer: PromptRenderer, **training: Any) -> TrainingData:
    return build_training_data(rows, renderer, TrainingSection(**training))


def learnt(data: TrainingData) -> list[int]:
    """The first row's tokens that are learnt."""
    row = data.dataset[0]
    assert len(row["input_ids"]) == len(row["labels"]) == row["length"]
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    assert all(label in (token, IGNORED) for token, label in pairs)
    return [label for label in row["labels"] if label != IGNORED]


def test_prompt_then_completion(renderer: PromptRenderer) -> None:
    data = build([SHORT_ROW], renderer)
    row = data.dataset[0]
    prompt_ids = renderer.prompt_ids(SHORT_ROW.prompt)
    completion_ids = renderer.completion_ids(SHORT_ROW.prompt, SHORT_ROW.completion)
    assert row["input_ids"] == prompt_ids + completion_ids
    assert row["labels"] == [IGNORED] * len(prompt_ids) + completion_ids
    assert (data.num_rows, data.num_too_long) == (1, 0)


@pytest.mark.parametrize(
    ("training", "is_learnt"),
    [
        ({}, [False, True] * 3),
        ({"assistant_only_loss": True}, [False, True] * 3),
        ({"assistant_only_loss": True, "completion_only_loss": False}, [False, True] * 3),
        ({"assistant_only_loss": False}, [False] * 5 + [True]),
        ({"completion_only_loss": False}, [True] * 6),
    ],
)
def test_what_of_a_conversation_is_learnt(
    renderer: PromptRenderer, training: dict[str, bool], is_learnt: list[bool]
) -> None:
    segments = renderer.segments([(e.prompt, e.completion) for e in (DIALOGUE, *DIALOGUE.further)])
    data = build([DIALOGUE], renderer, **training)
    assert data.dataset[0]["input_ids"] == [i for s in segments for i in s.ids]
    expected = [i for s, wanted in zip(segments, is_learnt, strict=True) if wanted for i in s.ids]
    assert learnt(data) == expected


def test_long_rows_are_left_out_whole(renderer: PromptRenderer) -> None:
    data = build([LONG_ROW, SHORT_ROW, LONG_ANSWER], renderer, max_length=64)
    assert (data.num_rows, data.num_too_long) == (1, 2)
    alone = build([SHORT_ROW], renderer, max_length=64)
    assert data.dataset[:] == alone.dataset[:]


@pytest.mark.parametrize(
    ("strategy", "is_whole"), [("bfd", False), ("bfd_split", True), ("wrapped", True)]
)
def test_long_rows_stay_where_packing_cuts(
    renderer: PromptRenderer, strategy: str, is_whole: bool
) -> None:
    rows = [LONG_ROW, SHORT_ROW, LONG_ANSWER]
    packing = {"packing": True, "packing_strategy": strategy, "max_length": 64}
    data = build(rows, renderer, **packing)
    assert (data.num_rows, data.num_too_long) == ((3, 0) if is_whole else (1, 2))
    # Without packing the strategy says nothing.
    assert build(rows, renderer, **packing | {"packing": False}).num_too_long == 2


def test_longest_row_that_fits(renderer: PromptRenderer) -> None:
    length = build([SHORT_ROW], renderer).dataset[0]["length"]
    assert build([SHORT_ROW], renderer, max_length=length).num_rows == 1
    with pytest.raises(InvalidError, match=f"the shortest has {length}: raise") as caught:
        build([SHORT_ROW, LONG_ROW], renderer, max_length=length - 1)
    assert caught.value.code == "dataset_too_long"
    assert f"max_length={length - 1} " in caught.value.message


def test_no_rows(renderer: PromptRenderer) -> None:
    with pytest.raises(InvalidError) as caught:
        build([], renderer)
    assert caught.value.code == "dataset_empty"


def test_rows_are_read_as_they_are_tokenised(
    renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million rows are never in memory as text; whoever gives them may stop it by raising."""
    monkeypatch.setattr("worker.dataset._CHUNK", 2)
    assert build([SHORT_ROW] * 5, renderer).num_rows == 5

    def rows() -> Iterator[Row]:
        yield SHORT_ROW
        raise InterruptedError

    with pytest.raises(InterruptedError):
        build(rows(), renderer)


def _tokenise_in_two(renderer: PromptRenderer, alone: list[list[int]]) -> None:
    data = build([SHORT_ROW, LONG_ROW, DIALOGUE], renderer, dataset_num_proc=2)
    assert data.dataset["input_ids"][:] == alone


def test_processes_within_a_worker(renderer: PromptRenderer) -> None:
    """Celery's children are daemons, which may not have children of their own by multiprocessing's rules."""
    alone = build([SHORT_ROW, LONG_ROW, DIALOGUE], renderer).dataset["input_ids"][:]
    process = billiard.Process(target=_tokenise_in_two, args=(renderer, alone))
    process.daemon = True
    process.start()
    process.join(60)
    assert process.exitcode == 0
