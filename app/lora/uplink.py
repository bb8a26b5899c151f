"""Copies from ordinary host memory to a GPU, beside what that computes."""

import threading

import torch
from torch import Tensor

_PIECE_BYTES = 4 << 20


class Uplink:
    """Through two pieces of page-locked memory on a stream of its own: one is filled while the other is on its way.

    A GPU waits for what it computes before it copies from ordinary memory itself; and page-locked memory that is asked for
    later, some for each adapter, made one step in a hundred 56 ms long, now 6.4 (H200). Any thread, one at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pieces = [
            torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]

    def send(self, data: Tensor) -> Tensor:
        """uint8 [bytes] -> the same on the device, or itself where that has no memory left.

        It is there when this returns. Its memory is this stream's: see Tensor.record_stream.
        """
        with self._lock, torch.cuda.stream(self._stream):
            try:
                target = torch.empty(len(data), dtype=torch.uint8, device=self._device)
            except torch.OutOfMemoryError:
                return data
            sent: list[torch.cuda.Event] = []
            parts = zip(
                torch.split(data, _PIECE_BYTES), torch.split(target, _PIECE_BYTES), strict=True
            )
            for i, (source, part) in enumerate(parts):
                if i > 1:
                    sent[i - 2].synchronize()
                piece = self._pieces[i % 2][: len(source)]
                piece.copy_(source)
                part.copy_(piece, non_blocking=True)
                sent.append(self._stream.record_event())
            sent[-1].synchronize()
        return target
