"""Logits -> token ids, each row by its own request's parameters."""

import torch
from torch import Tensor

from app.engine.sequence import SamplingParams

# A full sort of the vocabulary costs 37-200 ms for 64 rows on a CPU. What lies beyond the 256 likeliest tokens is
# noise to a translation; within them temperature, top_k and top_p are exact.
_MAX_CANDIDATES = 256


class Sampler:
    """Draws tokens. A request with a seed gets the same tokens whoever shares its batch."""

    def __init__(self) -> None:
        self._generators: dict[int, torch.Generator] = {}

    def sample(
        self, logits: Tensor, params: list[SamplingParams], keys: list[int]
    ) -> list[int | None]:
        """logits [rows, vocabulary] -> one token id a row; None for a row that is not finite.

        `keys` name the requests, so that each keeps its own random state from step to step.
        """
        best, best_ids = logits.max(dim=-1)
        token_ids: list[int | None] = best_ids.tolist()
        # max() hands a NaN on, so one value tells whether a row is sound.
        for row, finite in enumerate(torch.isfinite(best).tolist()):
            if not finite:
                token_ids[row] = None
            elif params[row].temperature > 0 and params[row].top_k != 1:
                token_ids[row] = self._draw(logits[row], params[row], keys[row])
        return token_ids

    def forget(self, key: int) -> None:
        """The request is over."""
        self._generators.pop(key, None)

    def _draw(self, logits: Tensor, params: SamplingParams, key: int) -> int:
        num_candidates = min(params.top_k or _MAX_CANDIDATES, _MAX_CANDIDATES, logits.shape[-1])
        values, ids = torch.topk(logits.float(), num_candidates)  # in descending order
        # In double precision: a tiny temperature must not overflow to inf - inf.
        probabilities = torch.softmax((values - values[0]).double().cpu() / params.temperature, 0)
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
