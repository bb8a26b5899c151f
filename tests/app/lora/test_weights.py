"""One piece of memory for all matrices."""

import pytest
import torch

from app.lora.weights import LoraLayout, LoraWeights, SiteShape

# An odd number of values before B.
SITES = (SiteShape("x", 2, 3, 5), SiteShape("y", 1, 7, 4))


@pytest.mark.parametrize("b_dtype", [torch.float32, torch.bfloat16])
def test_matrices_lie_beside_one_another(b_dtype: torch.dtype) -> None:
    layout = LoraLayout(SITES, torch.float32, b_dtype)
    assert layout.rank == 2
    assert layout.num_bytes == 13 * 4 + 14 * b_dtype.itemsize
    weights = LoraWeights(layout, torch.zeros(layout.num_bytes, dtype=torch.uint8))
    for part, start in zip(layout.parts(weights.data), (0, 100), strict=True):
        part.copy_(torch.arange(start, start + len(part)))
    assert {name: (a.tolist(), b.tolist()) for name, (a, b) in weights.sites.items()} == {
        "x": ([[0, 1, 2], [3, 4, 5]], [[100, 101, 102, 103, 104], [105, 106, 107, 108, 109]]),
        "y": ([[6, 7, 8, 9, 10, 11, 12]], [[110, 111, 112, 113]]),
    }


def test_where_matrices_begin() -> None:
    layout = LoraLayout(SITES, torch.float32, torch.float32)
    assert layout.begins == {"x": (0, 13), "y": (6, 23)}
