"""Greedy answers of a model and its LoRA in batches: what the server would answer, many times faster than one by one."""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from core.decoding import default_max_new_tokens, has_words
from core.errors import InvalidError
from core.prompt import PromptRenderer
from worker.precision import Precision

logger = logging.getLogger(__name__)

_MAX_ROWS = 64
_MAX_TOKENS = 32_768  # of prompts and room for answers in one batch: bounds the key/value cache
_SECOND = "current"


@dataclass(frozen=True)
class Way:
    """How texts become prompts, and which tokens end an answer."""

    renderer: PromptRenderer
    stop_token_ids: frozenset[int]


@dataclass(frozen=True)
class _Question:
    index: int
    prompt_ids: list[int]
    max_new_tokens: int


class Generator:
    """Answers texts with whatever adapter of `model` is active, and leaves the model as it was.

    `max_new_tokens` and `context_length` bound an answer as the server's do. `check` is called at every token; what
    it raises comes out.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        precision: Precision,
        *,
        max_new_tokens: int,
        context_length: int,
        check: Callable[[], None],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._precision = precision
        self._max_new_tokens = max_new_tokens
        self._context_length = context_length
        self._check = check
        self._max_rows = _MAX_ROWS

    def answer(self, texts: Sequence[str], way: Way) -> list[str]:
        """One answer for each text, in order; "" for a text that leaves no room in the context."""
        started_s = time.monotonic()
        answers = ["" if has_words(text) else text for text in texts]
        waiting = sorted(self._questions(texts, way), key=lambda q: len(q.prompt_ids))
        with _as_in_serving(self._model, self._precision) as model:
            while waiting:
                batch = _fitting(waiting, self._max_rows)
                outputs = self._try(model, batch, way)
                if outputs is None:
                    continue
                del waiting[: len(batch)]
                for question, ids in zip(batch, outputs, strict=True):
                    answers[question.index] = self._tokenizer.decode(ids, skip_special_tokens=True)
        logger.info("%d rows are answered in %.1f s", len(texts), time.monotonic() - started_s)
        return answers

    def _questions(self, texts: Sequence[str], way: Way) -> Iterator[_Question]:
        for index, text in enumerate(texts):
            if not has_words(text):
                continue
            prompt_ids = way.renderer.prompt_ids(text)
            room = self._context_length - len(prompt_ids)
            wanted = min(default_max_new_tokens(len(prompt_ids)), self._max_new_tokens, room)
            if wanted > 0:
                yield _Question(index, prompt_ids, wanted)

    def _try(
        self, model: PreTrainedModel, batch: list[_Question], way: Way
    ) -> list[list[int]] | None:
        """The answers' token ids; None if memory was short: the next batch is half as large."""
        try:
            return self._generate(model, batch, way)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            self._max_rows = len(batch) // 2
            logger.warning("out of memory: going on with batches of %d", self._max_rows)
        # Out of the handler, whose traceback holds the tensors.
        gc.collect()
        torch.cuda.empty_cache()
        return None

    def _generate(
        self, model: PreTrainedModel, batch: list[_Question], way: Way
    ) -> list[list[int]]:
        width = max(len(q.prompt_ids) for q in batch)
        padding = [width - len(q.prompt_ids) for q in batch]
        device = self._precision.device
        ids = [[0] * n + q.prompt_ids for n, q in zip(padding, batch, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        output = model.generate(
            input_ids=torch.tensor(ids, device=device),  # [rows, width]
            attention_mask=torch.tensor(mask, device=device),
            stopping_criteria=[_Limits([q.max_new_tokens for q in batch], width, self._check)],
            max_new_tokens=max(q.max_new_tokens for q in batch),
            eos_token_id=sorted(way.stop_token_ids),
        )
        new = output[
            :, width:
        ].tolist()  # padded at the right, after a stop token or at the row's limit
        return [
            _until_stop(row[: q.max_new_tokens], way.stop_token_ids)
            for q, row in zip(batch, new, strict=True)
        ]


class _Limits(StoppingCriteria):  # type: ignore[misc]
    """Each row has its own limit."""

    def __init__(self, max_new_tokens: list[int], width: int, check: Callable[[], None]) -> None:
        self._ends = torch.tensor(max_new_tokens) + width
        self._check = check

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._check()
        return (self._ends <= input_ids.shape[1]).to(input_ids.device)  # [rows]


@contextmanager
def second_adapter(model: PeftModel, folder: Path) -> Iterator[None]:
    """Within, the LoRA in `folder` is active in place of the trained one.

    Raises InvalidError `adapter_broken` if it is not a LoRA that fits this model.
    """
    trained = model.active_adapter
    trainable = [p for p in model.parameters() if p.requires_grad]
    with _kept_modes(model):
        try:
            _load(model, folder)
            model.set_adapter(_SECOND, inference_mode=True)
            yield
        finally:
            if _SECOND in model.peft_config:
                model.set_adapter(trained)
                model.delete_adapter(_SECOND)
            for parameter in trainable:
                parameter.requires_grad = True


def _load(model: PeftModel, folder: Path) -> None:
    try:
        # The device is named because PEFT would take any accelerator that the machine has.
        loaded = model.load_adapter(str(folder), _SECOND, torch_device=str(model.device))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise InvalidError(f"it cannot be loaded: {error}", code="adapter_broken") from error
    absent = [*loaded.missing_keys, *loaded.unexpected_keys]
    if absent:
        raise InvalidError(
            f"its weights do not fit this base model: {', '.join(absent[:3])}",
            code="adapter_broken",
        )


def _fitting(waiting: list[_Question], max_rows: int) -> list[_Question]:
    """As many of the first as there is room for; lengths rise, so the last one decides the width."""
    batch: list[_Question] = []
    for question in waiting[:max_rows]:
        num_tokens = len(question.prompt_ids) + question.max_new_tokens
        if batch and num_tokens * (len(batch) + 1) > _MAX_TOKENS:
            break
        batch.append(question)
    return batch


def _until_stop(ids: list[int], stop_token_ids: frozenset[int]) -> list[int]:
    end = next((i for i, token_id in enumerate(ids) if token_id in stop_token_ids), len(ids))
    return ids[:end]


@contextmanager
def _as_in_serving(model: PeftModel, precision: Precision) -> Iterator[PreTrainedModel]:
    """The model inside, without dropout and checkpointing; afterwards as it was."""
    inner = model.get_base_model()
    config = inner.generation_config
    # What is unset in a request's own would be taken from here, such as a checkpoint's repetition_penalty.
    inner.generation_config = GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0)
    try:
        with _kept_modes(model), torch.no_grad(), _autocast(precision):
            model.eval()
            yield inner
    finally:
        inner.generation_config = config


@contextmanager
def _kept_modes(model: PeftModel) -> Iterator[None]:
    """Afterwards the modules that were in training mode are so again."""
    training = [module for module in model.modules() if module.training]
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _autocast(precision: Precision) -> AbstractContextManager[Any]:
    """As the trainer computes."""
    if precision.device.type != "cuda" or precision.dtype == torch.float32:
        return nullcontext()
    return torch.autocast("cuda", dtype=precision.dtype)
