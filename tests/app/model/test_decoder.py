"""The decoder's parts that the parity tests do not tell apart."""

import pytest
import torch
from torch import nn

from app.model import decoder


def test_the_output_embeddings_are_copied_only_where_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = nn.Linear(8, 16, bias=False).requires_grad_(False)
    num_bytes = 8 * 16 * 4
    monkeypatch.setattr(decoder, "free_bytes", lambda _: 4 * num_bytes)
    fast = decoder._fastest(head)
    assert fast is not head
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), head(x))
    monkeypatch.setattr(decoder, "free_bytes", lambda _: 4 * num_bytes - 4)
    assert decoder._fastest(head) is head
