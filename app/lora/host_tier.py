"""Adapters' weights in host memory, between the volume and the LoRA bank: what left the bank comes back without a read."""

from collections import OrderedDict
from collections.abc import Iterator

from app.lora.weights import LoraWeights


class HostTier:
    """Weights that were resident once and found sound; the longest unused go when they exceed `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._weights: OrderedDict[tuple[str, str], LoraWeights] = OrderedDict()

    def __len__(self) -> int:
        return len(self._weights)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The keys, as they are now."""
        return iter(list(self._weights))

    def get(self, key: tuple[str, str]) -> LoraWeights | None:
        weights = self._weights.get(key)
        if weights is not None:
            self._weights.move_to_end(key)
        return weights

    def put(self, key: tuple[str, str], weights: LoraWeights) -> None:
        if key in self._weights:
            return
        self._weights[key] = weights
        self.num_bytes += weights.num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._weights.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def drop(self, key: tuple[str, str]) -> None:
        weights = self._weights.pop(key, None)
        if weights is not None:
            self.num_bytes -= weights.num_bytes
