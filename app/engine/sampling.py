"""Logits -> token ids, each row by its own request's parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.sequence import SamplingParams

# A full sort of the vocabulary costs 37-200 ms for 64 rows on a CPU. What lies beyond the 256 likeliest tokens is
# noise to a translation; within them temperature, top_k and top_p are exact.
_MAX_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class Likeliest:
    """Each row's likeliest token, on its way from the device."""

    token_ids: Tensor  # [rows], on the device; -1: the row is not finite
    _arrived: Tensor
    _event: torch.cuda.Event | None

    def wait(self) -> list[int]:
        """As token_ids."""
        if self._event is not None:
            self._event.synchronize()
        token_ids: list[int] = self._arrived.tolist()
        return token_ids


@torch.inference_mode()
def choose_likeliest(logits: Tensor) -> Likeliest:
    """logits [rows, vocabulary]; does not wait for the device."""
    best, ids = logits.max(dim=-1)
    # max() hands a NaN on, so one value tells whether a row is sound.
    ids = torch.where(torch.isfinite(best), ids, -1)
    if not ids.is_cuda:
        return Likeliest(ids, ids, None)
    arrived = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
    arrived.copy_(ids, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return Likeliest(ids, arrived, event)


def is_drawn(params: SamplingParams) -> bool:
    """Whether anything but the likeliest token may be chosen."""
    return params.temperature > 0 and params.top_k != 1


class Sampler:
    """Draws tokens. A request with a seed gets the same tokens whoever shares its batch."""

    def __init__(self) -> None:
        self._generators: dict[int, torch.Generator] = {}

    def draw(
        self, logits: Tensor, likeliest: list[int], params: list[SamplingParams], keys: list[int]
    ) -> list[int]:
        """logits [rows, vocabulary] -> `likeliest`, with the rows that are sound and want it drawn anew.

        `keys` name the requests, so that each keeps its own random state from step to step.
        """
        token_ids = list(likeliest)
        rows = [i for i, p in enumerate(params) if is_drawn(p) and token_ids[i] >= 0]
        if rows:
            num_candidates = min(_MAX_CANDIDATES, logits.shape[-1])
            chosen = logits if len(rows) == len(logits) else logits[rows]
            values, ids = torch.topk(chosen.float(), num_candidates)  # in descending order
            for row, own_values, own_ids in zip(rows, values.cpu(), ids.cpu(), strict=True):
                token_ids[row] = self._draw(own_values, own_ids, params[row], keys[row])
        return token_ids

    def forget(self, key: int) -> None:
        """The request is over."""
        self._generators.pop(key, None)

    def _draw(self, values: Tensor, ids: Tensor, params: SamplingParams, key: int) -> int:
        values = values[: params.top_k or None]
        # In double precision: a tiny temperature must not overflow to inf - inf.
        probabilities = torch.softmax((values - values[0]).double() / params.temperature, 0)
        if params.top_p < 1:
            # Keep the smallest set that reaches top_p; the first token always stays (Holtzman et al. 2019).
            before = probabilities.cumsum(0) - probabilities
            probabilities = probabilities.masked_fill(before >= params.top_p, 0)
        choice = torch.multinomial(probabilities, 1, generator=self._generator(params, key))
        return int(ids[int(choice)])

    def _generator(self, params: SamplingParams, key: int) -> torch.Generator:
        generator = self._generators.get(key)
        if generator is None:
            generator = self._generators[key] = torch.Generator()
            if params.seed is None:
                generator.seed()
            else:
                generator.manual_seed(params.seed)
        return generator
