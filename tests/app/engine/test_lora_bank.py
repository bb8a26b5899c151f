"""The bank against the formula, one adapter at a time; columns given out, given back and cleaned."""

import torch
from torch import nn

from app.engine.lora_bank import BankedLinear, LoraBank


def make_bank(width: int = 8, num_slots: int = 4) -> tuple[LoraBank, BankedLinear]:
    torch.manual_seed(0)
    bank = LoraBank(
        width=width, num_slots=num_slots, dtype=torch.float32, device=torch.device("cpu")
    )
    return bank, bank.wrap("site", nn.Linear(6, 5))


def weights(rank: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rank, 6) * scale, torch.randn(rank, 5) * scale


def test_each_token_gets_its_own_adapter_and_no_other() -> None:
    bank, site = make_bank()
    pairs = [weights(1), weights(4), weights(2)]
    slots = [0, *(bank.load(a.shape[0], {"site": (a, b)}) for a, b in pairs)]
    x = torch.randn(1, 7, 6)
    order = [3, 0, 1, 2, 2, 0, 3]
    bank.select([slots[i] for i in order])
    y = site(x)
    for token, number in enumerate(order):
        expected = site.base(x[0, token])
        if number:
            a, b = pairs[number - 1]
            expected = expected + (x[0, token] @ a.T) @ b
        torch.testing.assert_close(y[0, token], expected)


def test_a_neighbours_infinity_cannot_pass() -> None:
    bank, site = make_bank()
    sound, wild = weights(2), weights(2, scale=1e30)
    first = bank.load(2, {"site": sound})
    second = bank.load(2, {"site": wild})
    x = torch.full((1, 3, 6), 1e20)
    bank.select([first, second, 0])
    y = site(x)
    assert torch.isfinite(y[0, 0]).all()
    assert torch.isfinite(y[0, 2]).all()
    assert not torch.isfinite(y[0, 1]).all(), "the neighbour was not wild after all"


def test_a_step_of_the_base_alone_is_the_base() -> None:
    bank, site = make_bank()
    bank.load(2, {"site": weights(2)})
    x = torch.randn(1, 2, 6)
    bank.select([0, 0])
    assert bank.foreign is None
    assert torch.equal(site(x), site.base(x))


def test_columns_need_not_be_neighbours() -> None:
    bank, site = make_bank(width=6)
    first = bank.load(2, {"site": weights(2)})
    bank.load(2, {"site": weights(2)})
    third = bank.load(2, {"site": weights(2)})
    bank.unload(first)
    bank.unload(third)
    a, b = weights(4)
    slot = bank.load(4, {"site": (a, b)})
    assert bank.num_free_columns == 0
    x = torch.randn(1, 1, 6)
    bank.select([slot])
    torch.testing.assert_close(site(x)[0, 0], site.base(x[0, 0]) + (x[0, 0] @ a.T) @ b)


def test_unloading_leaves_nothing_behind_for_the_next_owner() -> None:
    """An adapter that skips a site gets columns there too; a former owner's weights must be gone."""
    bank, site = make_bank()
    other = bank.wrap("other", nn.Linear(6, 5))
    bank.unload(bank.load(3, {"site": weights(3), "other": weights(3)}))
    slot = bank.load(3, {"other": weights(3)})
    bank.load(2, {"site": weights(2)})  # keeps `site` from being skipped
    x = torch.randn(1, 1, 6)
    bank.select([slot])
    torch.testing.assert_close(site(x), site.base(x))
    assert not torch.allclose(other(x), other.base(x))


def test_room_is_columns_and_slots() -> None:
    bank, _ = make_bank(width=8, num_slots=2)
    assert bank.has_room(8)
    assert not bank.has_room(9)
    slots = [bank.load(1, {"site": weights(1)}) for _ in range(2)]
    assert not bank.has_room(1), "no slot is left"
    bank.unload(slots[0])
    assert bank.has_room(7)
