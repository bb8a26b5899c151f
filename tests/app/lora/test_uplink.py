"""Bytes arrive whole; needs a GPU."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from app.lora import uplink
from app.lora.uplink import Uplink

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize("num_bytes", [1, 1000, 4000, 4001, 9999])
def test_bytes_arrive_whole(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(uplink, "_PIECE_BYTES", 1000)
    link = Uplink(DEVICE)
    every = [torch.randint(0, 255, (num_bytes,), dtype=torch.uint8) for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        for data, sent in zip(every, threads.map(link.send, every), strict=True):
            assert sent.device == DEVICE
            assert torch.equal(sent.cpu(), data)


def test_without_memory_they_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Uplink(DEVICE)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    data = torch.ones(5, dtype=torch.uint8)
    monkeypatch.setattr(torch, "empty", fail)
    assert link.send(data) is data
