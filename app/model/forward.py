"""One forward pass in the fastest way that gives this model's answer: CUDA graphs, our own decoder, or its own code."""

import logging
from importlib.util import find_spec
from itertools import accumulate

import torch
from torch import Tensor

from app.lora.bank import LoraBank
from app.model.base import BaseModel
from app.model.decoder import Decoder, UnknownLayersError
from app.model.kv_cache import KVCache
from app.model.operations import Batch, Operations
from app.model.projection import Projection, StackedProjection
from app.model.step import Span, Step
from core.errors import ServiceError

_HAS_TRITON = find_spec("triton") is not None  # it comes with torch for GPUs
if _HAS_TRITON:
    from app.lora.column_writer import ColumnWriter, is_right
    from app.model.graphs import DecoderGraphs
    from app.model.kernels import Kernels

logger = logging.getLogger(__name__)

PROBE_TOKENS = 8
# Largest ||own - model's|| / ||model's|| of the probe's logits: rounding stays below it, a mistake does not.
_TOLERANCE = {torch.float32: 1e-3}
_HALF_TOLERANCE = 0.05


class Forward:
    """Owned by the engine's thread once it is made."""

    def __init__(
        self,
        model: BaseModel,
        bank: LoraBank,
        cache: KVCache,
        *,
        max_tokens: int,
        max_rows: int,
    ) -> None:
        """A step has at most `max_tokens`, of which at most `max_rows` yield a new one.

        Takes PROBE_TOKENS places of the cache. Raises ServiceError `kv_cache_too_small`.
        """
        self._model = model
        self._bank = bank
        self._cache = cache
        # Whether a step may be asked for before the tokens of the one before it are known here.
        self.is_asynchronous = model.device.type == "cuda"
        self._has_kernels = self.is_asynchronous and _HAS_TRITON
        self._graphs: DecoderGraphs | None = None
        self._probe_region = _take_probe_region(cache)
        self._operations, self._decoder = self._choose_way()
        if self._has_kernels:
            self._choose_writer()
        if _HAS_TRITON and self._decoder is not None and isinstance(self._operations, Kernels):
            self._graphs = DecoderGraphs(
                self._decoder,
                self._operations,
                cache,
                max_tokens=max_tokens,
                max_rows=max(max_rows, PROBE_TOKENS),
            )
        logger.info("forward pass: %s", self.way)

    def first_column(self, slot: int) -> int:
        """See LoraBank.first_column."""
        return self._bank.first_column(slot)

    @property
    def way(self) -> str:
        """In words, for operators."""
        if self._graphs is not None:
            return "own decoder, CUDA graphs"
        code = "the model's own code" if self._decoder is None else "own decoder"
        return code if type(self._operations) is Operations else f"{code}, Triton kernels"

    @torch.inference_mode()
    def run(self, step: Step, carried: Tensor | None = None) -> Tensor:
        """-> logits [step.last_rows, vocabulary] in float32.

        `carried` [rows]: token ids that the step before chose, which `step.sources` refers to.
        """
        if self._graphs is not None:
            return self._graphs.run(step, carried).float()
        token_ids = torch.tensor(step.token_ids, dtype=torch.long, device=self._model.device)
        if carried is not None and len(carried):
            sources = torch.tensor(step.sources, dtype=torch.long, device=self._model.device)
            token_ids = torch.where(sources < 0, token_ids, carried[sources].clamp(min=0))
        batch = self._operations.prepare(step, token_ids)
        return self._forward(batch, self._operations, self._decoder).float()

    def _probe(self) -> Step:
        """Two prompts, PROBE_TOKENS together, spread over the vocabulary."""
        lengths = [5, 3]
        vocab_size = self._model.vocab_size
        starts = [0, *accumulate(lengths[:-1])]
        spans = [
            Span(s, n, 0, self._probe_region + s) for s, n in zip(starts, lengths, strict=True)
        ]
        return Step(
            token_ids=[
                i * max(1, vocab_size // PROBE_TOKENS) % vocab_size for i in range(PROBE_TOKENS)
            ],
            sources=[-1] * PROBE_TOKENS,
            positions=[position for n in lengths for position in range(n)],
            slots=[0] * PROBE_TOKENS,
            spans=spans,
            last_rows=list(range(PROBE_TOKENS)),
        )

    @torch.no_grad()  # not inference mode: what is fused here is written to at every load
    def _choose_way(self) -> tuple[Operations, Decoder | None]:
        """The fastest that can be had here and answers as the model's own code in plain torch does."""
        probe = self._probe()
        operations, decoder = Operations(self._bank), None
        token_ids = torch.tensor(probe.token_ids, device=self._model.device)
        batch = operations.prepare(probe, token_ids)
        expected, attention = self._model.forward(batch, self._cache, operations)
        try:
            # Kernels want the adapters beside the base's weights.
            projection = StackedProjection if self._has_kernels else Projection
            own = Decoder(self._model.model, attention, projection)
            if self._is_right(own.forward(batch, self._cache, operations), expected):
                decoder = own
        except UnknownLayersError as error:
            logger.info("this model runs in its own code: %s", error)
        if not self._has_kernels:
            return operations, decoder
        try:
            kernels = Kernels(self._bank)
            batch = kernels.prepare(probe, token_ids)
            if self._is_right(self._forward(batch, kernels, decoder), expected):
                return kernels, decoder
        except Exception:  # no compiler, an old device: whatever it is, plain torch serves
            logger.exception("no Triton kernels")
        return operations, decoder

    def _choose_writer(self) -> None:
        """Once the sites' matrices are where they stay."""
        try:
            writer = ColumnWriter(self._bank)
            if is_right(writer, self._bank):
                self._bank.writer = writer
            else:
                logger.warning("the kernel that loads adapters writes otherwise than plain copies")
        except Exception:
            logger.exception("adapters are loaded by plain copies")

    def _forward(self, batch: Batch, operations: Operations, decoder: Decoder | None) -> Tensor:
        if decoder is not None:
            return decoder.forward(batch, self._cache, operations)
        return self._model.forward(batch, self._cache, operations)[0]

    def _is_right(self, logits: Tensor, expected: Tensor) -> bool:
        error = float((logits.float() - expected.float()).norm() / expected.float().norm())
        is_right = error < _TOLERANCE.get(self._bank.dtype, _HALF_TOLERANCE)
        if not is_right:
            logger.warning("a faster forward pass answers otherwise than the model: %.2g", error)
        return is_right


def _take_probe_region(cache: KVCache) -> int:
    start = cache.regions.allocate(PROBE_TOKENS)
    if start is None:
        raise ServiceError(
            f"a key/value store of {cache.regions.capacity} tokens is too small",
            code="kv_cache_too_small",
        )
    return start
