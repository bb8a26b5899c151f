"""Keys and values lie where they are told to."""

import torch

from app.model.kv_cache import KVCache


def test_write_puts_keys_where_it_is_told() -> None:
    cache = KVCache(
        num_layers=2,
        num_tokens=5,
        num_kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    keys = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    stored, values = cache.write(1, torch.tensor([3, 0]), keys, -keys)
    assert stored[[0, 3], 0].tolist() == [[3, 4], [1, 2]]
    assert values[[0, 3], 0].tolist() == [[-3, -4], [-1, -2]]
    other, _ = cache.write(0, torch.tensor([0, 3]), keys * 0, keys * 0)
    assert not other[[0, 3]].any()
    assert stored[[0, 3], 0].tolist() == [[3, 4], [1, 2]], "layers share memory"
