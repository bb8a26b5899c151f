"""Rows of a dataset -> the tokenised dataset that SFTTrainer takes, through the same rendering as serving."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from datasets import Dataset, Features, List, Value, concatenate_datasets, disable_progress_bars

from core.datasets import Row
from core.errors import InvalidError
from core.prompt import PromptRenderer
from core.training_config import TrainingSection

IGNORED = -100  # the label of a token that is read and not learnt
_CHUNK = 5000  # rows that lie in memory as text at once
_FEATURES = Features(
    {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "length": Value("int32")}
)


@dataclass(frozen=True)
class TrainingData:
    """`dataset` has input_ids and labels, [tokens] each, and their length; a label of -100 is not learnt."""

    dataset: Dataset
    num_rows: int
    num_too_long: int


def build_training_data(
    rows: Iterable[Row], renderer: PromptRenderer, training: TrainingSection
) -> TrainingData:
    """Tokenises `rows`, in `dataset_num_proc` processes; those of more than `max_length` tokens are left out and counted.

    Nothing is truncated: a model that learns from half an answer learns to stop in the middle. Only a packing strategy
    that cuts rows anyhow ("wrapped", "bfd_split") is given them all.

    Raises InvalidError `dataset_too_long` or `dataset_empty` if no row is left.
    """
    disable_progress_bars()
    tokenise = partial(_tokenise, renderer=renderer, training=training)
    parts = []
    for number, chunk in enumerate(_chunks(rows)):
        part = Dataset.from_dict({"row": chunk}).map(
            tokenise,
            batched=True,
            num_proc=training.dataset_num_proc if training.dataset_num_proc > 1 else None,
            remove_columns=["row"],
            features=_FEATURES,
            keep_in_memory=True,  # nothing is to be left behind in a cache on the disk
            new_fingerprint=f"chunk-{number}",
        )
        parts.append(part)
    if not parts:
        raise InvalidError("the dataset has no rows", code="dataset_empty")
    dataset = concatenate_datasets(parts)
    if not _is_cut(training):
        lengths = dataset.with_format("numpy")["length"][:]
        fitting = (lengths <= training.max_length).nonzero()[0]
        if not len(fitting):
            raise InvalidError(
                f"each of the {len(lengths)} rows is longer than max_length={training.max_length} "
                f"tokens, the chat template included; the shortest has {min(lengths)}: raise "
                "config.training.max_length",
                code="dataset_too_long",
            )
        if len(fitting) < len(lengths):
            dataset = dataset.select(fitting)
            return TrainingData(dataset, len(fitting), len(lengths) - len(fitting))
    return TrainingData(dataset, len(dataset), 0)


def _is_cut(training: TrainingSection) -> bool:
    return training.packing and training.packing_strategy in ("wrapped", "bfd_split")


def _chunks(rows: Iterable[Row]) -> Iterator[list[str]]:
    remaining = iter(rows)
    while chunk := [row.model_dump_json() for row in islice(remaining, _CHUNK)]:
        yield chunk


def _tokenise(
    batch: dict[str, list[str]], renderer: PromptRenderer, training: TrainingSection
) -> dict[str, list[list[int]] | list[int]]:
    encoded = [_encode(Row.model_validate_json(row), renderer, training) for row in batch["row"]]
    return {
        "input_ids": [ids for ids, _ in encoded],
        "labels": [labels for _, labels in encoded],
        "length": [len(ids) for ids, _ in encoded],
    }


def _encode(
    row: Row, renderer: PromptRenderer, training: TrainingSection
) -> tuple[list[int], list[int]]:
    """-> ids and labels, [tokens] each."""
    exchanges = [(e.prompt, e.completion) for e in (row, *row.further)]
    segments = renderer.segments(exchanges)
    ids: list[int] = []
    labels: list[int] = []
    for i, segment in enumerate(segments):
        is_trained = training.is_trained(i, len(segments))
        ids += segment.ids
        labels += segment.ids if is_trained else [IGNORED] * len(segment.ids)
    return ids, labels
