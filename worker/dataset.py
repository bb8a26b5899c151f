"""Rows of a dataset -> the tokenised dataset that SFTTrainer takes, through the same rendering as serving."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from core.datasets import Row
from core.errors import InvalidError
from core.prompt import PromptRenderer


@dataclass(frozen=True)
class TrainingData:
    """`dataset` has the columns input_ids and completion_mask, [tokens] each; 1 marks what is to be learnt."""

    dataset: Dataset
    num_rows: int
    num_too_long: int


def build_training_data(
    rows: Iterable[Row], renderer: PromptRenderer, max_length: int
) -> TrainingData:
    """Tokenises `rows`; those of more than `max_length` tokens are left out and counted.

    Nothing is truncated: a model that learns from half an answer learns to stop in the middle.

    Raises InvalidError `dataset_too_long` if no row is left.
    """
    # Not lists: millions of rows as Python integers would fill the memory.
    input_ids: list[np.typing.NDArray[np.integer]] = []
    completion_masks: list[np.typing.NDArray[np.integer]] = []
    num_too_long = 0
    shortest: int | None = None
    for row in rows:
        prompt_ids = renderer.prompt_ids(row.prompt)
        completion_ids = renderer.completion_ids(row.prompt, row.completion)
        length = len(prompt_ids) + len(completion_ids)
        shortest = length if shortest is None else min(shortest, length)
        if length > max_length:
            num_too_long += 1
            continue
        input_ids.append(np.array(prompt_ids + completion_ids, dtype=np.int32))
        mask = np.array([0] * len(prompt_ids) + [1] * len(completion_ids), dtype=np.int8)
        completion_masks.append(mask)
    if not input_ids:
        raise InvalidError(
            f"each of the {num_too_long} rows is longer than max_length={max_length} tokens, the "
            f"chat template included; the shortest has {shortest or 0}: raise config.training.max_length"
            if num_too_long
            else "the dataset has no rows",
            code="dataset_too_long" if num_too_long else "dataset_empty",
        )
    dataset = Dataset.from_dict({"input_ids": input_ids, "completion_mask": completion_masks})
    return TrainingData(dataset, len(input_ids), num_too_long)
