"""CUDA graphs of the whole forward pass, one for each number of tokens that a step is padded to.

A step's prompts and its single tokens share one row, so one graph serves both; a replay costs one launch where the pass
itself has hundreds. What differs from step to step is copied into `inputs` before.
"""

import bisect
import logging
import time

import torch
from torch import Tensor

from app.model.decoder import Decoder
from app.model.kernels import BLOCK_TOKENS, Kernels
from app.model.kv_cache import KVCache
from app.model.step import Step

logger = logging.getLogger(__name__)


class DecoderGraphs:
    """Captures once, replays ever after. Lives on one thread and one stream."""

    def __init__(
        self, decoder: Decoder, kernels: Kernels, cache: KVCache, *, max_tokens: int, max_rows: int
    ) -> None:
        """`max_tokens` in one step, of which `max_rows` yield a new token."""
        self._decoder = decoder
        self._kernels = kernels
        self._cache = cache
        self._max_rows = max_rows
        self._sizes = _sizes(max_tokens)
        device = cache.device
        self._inputs = {n: self._pack(Step(), n).to(device) for n in self._sizes}
        self._carried = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        started = time.perf_counter()
        # The largest first: the others then fit into its memory.
        for size in reversed(self._sizes):
            for has_adapters in (True, False):
                self._capture(size, has_adapters)
        logger.info("%d CUDA graphs in %.1f s", len(self._graphs), time.perf_counter() - started)

    @torch.inference_mode()
    def run(self, step: Step, carried: Tensor | None) -> Tensor:
        """-> logits [step.last_rows, vocabulary], which the next run overwrites.

        `carried`: the token ids that the step's sources refer to.
        """
        num_tokens = len(step.token_ids)
        size = self._sizes[bisect.bisect_left(self._sizes, num_tokens)]
        self._inputs[size].copy_(self._pack(step, size).pin_memory(), non_blocking=True)
        if carried is not None:
            self._carried[: len(carried)].copy_(carried)
        graph, logits = self._graphs[size, any(step.slots)]
        graph.replay()
        return logits[: len(step.last_rows)]

    def _pack(self, step: Step, size: int) -> Tensor:
        packed = step.pack(size, self._cache.spare_place, BLOCK_TOKENS)
        return torch.tensor(packed, dtype=torch.int32)

    def _forward(self, size: int, has_adapters: bool) -> Tensor:
        inputs = self._inputs[size]
        sources = inputs[1]
        token_ids = torch.where(sources < 0, inputs[0], self._carried[sources.clamp(min=0)])
        # A row whose logits were not finite has no token; its sequence is over, and this result is nobody's.
        batch = self._kernels.as_batch(
            inputs, token_ids.clamp(min=0), min(size, self._max_rows), has_adapters
        )
        return self._decoder.forward(batch, self._cache, self._kernels)

    @torch.inference_mode()
    def _capture(self, size: int, has_adapters: bool) -> None:
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(size, has_adapters)  # compiles kernels, chooses algorithms
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, as when an adapter's files are read.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits = self._forward(size, has_adapters)
        self._graphs[size, has_adapters] = graph, logits


def _sizes(max_tokens: int) -> list[int]:
    """Few enough to capture at the start, close enough that padding costs little."""
    sizes = [1, 2, 4, 8, 16]
    while sizes[-1] < max_tokens:
        sizes.append(sizes[-1] + (16 if sizes[-1] < 128 else 32 if sizes[-1] < 256 else 64))
    return sizes
