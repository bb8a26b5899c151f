"""One piece of memory for all matrices, on either side of the link."""

import pytest
import torch

from app.engine.lora_weights import LockedWeights, LoraLayout, LoraWeights

SHAPES = {"x": (2, 3, 5), "y": (1, 7, 4)}  # an odd number of values before B


def fill(weights: LoraWeights) -> LoraWeights:
    for number, pair in enumerate(weights.sites.values()):
        for side, tensor in enumerate(pair):
            tensor.copy_(torch.arange(tensor.numel()).view_as(tensor) + 100 * number + 50 * side)
    return weights


def make(
    a_dtype: torch.dtype = torch.float32, b_dtype: torch.dtype = torch.bfloat16
) -> LoraWeights:
    layout = LoraLayout(SHAPES, a_dtype, b_dtype)
    return fill(LoraWeights.of(layout, torch.zeros(layout.num_bytes, dtype=torch.uint8)))


@pytest.mark.parametrize("b_dtype", [torch.float32, torch.bfloat16])
def test_matrices_lie_beside_one_another(b_dtype: torch.dtype) -> None:
    weights = make(b_dtype=b_dtype)
    assert weights.rank == 2
    assert weights.num_bytes == 13 * 4 + 14 * b_dtype.itemsize
    for number, (name, (rank, num_in, num_out)) in enumerate(SHAPES.items()):
        a, b = weights.sites[name]
        assert (a.dtype, b.dtype) == (torch.float32, b_dtype)
        assert torch.equal(a, torch.arange(rank * num_in).view(rank, -1) + 100.0 * number)
        assert torch.equal(
            b.float(), torch.arange(rank * num_out).view(rank, -1) + 100.0 * number + 50
        )


def test_what_is_there_already_is_not_copied() -> None:
    weights = make()
    assert weights.on(torch.device("cpu")) is weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("has_memory", [True, False])
def test_page_locked_weights_come_back_whole(
    monkeypatch: pytest.MonkeyPatch, has_memory: bool
) -> None:
    layout = LoraLayout({"s": (8, 50_000, 20_001)}, torch.bfloat16, torch.bfloat16)
    data = torch.randint(0, 255, (layout.num_bytes,), dtype=torch.uint8)
    kept = LockedWeights(LoraWeights.of(layout, data))
    assert kept.num_bytes >= layout.num_bytes > 1 << 20
    device = torch.device("cuda", 0)
    if not has_memory:
        empty = torch.empty

        def fail_on_gpu(*size: int, **options: object) -> torch.Tensor:
            if options.get("device") == device:
                raise torch.OutOfMemoryError
            return empty(*size, **options)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(torch, "empty", fail_on_gpu)
    weights = kept.on(device)
    torch.cuda.synchronize()
    assert weights.data.is_cuda == has_memory
    assert torch.equal(weights.data.cpu(), data)
    assert [t.shape for t in weights.sites["s"]] == [(8, 50_000), (8, 20_001)]
