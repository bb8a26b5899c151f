"""The bank against the formula, one adapter at a time; columns given out, given back, moved and cleaned."""

import random
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from app.lora import bank as bank_module
from app.lora.bank import BankedLinear, LoraBank
from app.lora.update import MaskedUpdate, SparseUpdate
from app.lora.weights import SiteWeights
from app.model.projection import StackedProjection
from tests.app.harness import pack


@pytest.fixture(params=[SparseUpdate, MaskedUpdate])
def update(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Both ways to compute an update, whichever would be chosen."""
    monkeypatch.setattr(bank_module, "_DENSE_GAIN", 0 if request.param is SparseUpdate else 1e9)
    return request.param  # type: ignore[no-any-return]


def make_bank(width: int = 8, num_slots: int = 4) -> tuple[LoraBank, BankedLinear]:
    torch.manual_seed(0)
    bank = LoraBank(
        width=width, num_slots=num_slots, dtype=torch.float32, device=torch.device("cpu")
    )
    return bank, bank.wrap("site", nn.Linear(6, 5))


def weights(rank: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rank, 6) * scale, torch.randn(rank, 5) * scale


def test_each_token_gets_its_own_adapter_and_no_other(update: type) -> None:
    bank, site = make_bank()
    pairs = [weights(1), weights(4), weights(2)]
    slots = [0, *(bank.load(pack({"site": pair})) for pair in pairs)]
    x = torch.randn(1, 7, 6)
    order = [3, 0, 1, 2, 2, 0, 3]
    bank.select([slots[i] for i in order])
    assert type(bank.update) is update
    y = site(x)
    for token, number in enumerate(order):
        expected = site.base(x[0, token])
        if number:
            a, b = pairs[number - 1]
            expected = expected + (x[0, token] @ a.T) @ b
        torch.testing.assert_close(y[0, token], expected)


@pytest.mark.usefixtures("update")
def test_a_neighbours_infinity_cannot_pass() -> None:
    bank, site = make_bank()
    sound, wild = weights(2), weights(2, scale=1e30)
    first = bank.load(pack({"site": sound}))
    second = bank.load(pack({"site": wild}))
    x = torch.full((1, 3, 6), 1e20)
    bank.select([first, second, 0])
    y = site(x)
    assert torch.isfinite(y[0, 0]).all()
    assert torch.isfinite(y[0, 2]).all()
    assert not torch.isfinite(y[0, 1]).all(), "the neighbour was not wild after all"


def test_a_step_of_the_base_alone_is_the_base() -> None:
    bank, site = make_bank()
    bank.load(pack({"site": weights(2)}))
    x = torch.randn(1, 2, 6)
    bank.select([0, 0])
    assert bank.update is None
    assert torch.equal(site(x), site.base(x))


@pytest.mark.usefixtures("update")
def test_what_is_in_the_way_is_moved() -> None:
    bank, site = make_bank(width=9)
    other = bank.wrap("other", nn.Linear(6, 5))
    kept = [weights(2), weights(3)]
    first = bank.load(pack({"site": weights(1)}))
    left = bank.load(pack({"site": kept[0]}))
    third = bank.load(pack({"site": weights(1)}))
    right = bank.load(pack({"site": kept[1], "other": kept[1]}))
    bank.unload(first)
    bank.unload(third)
    assert [bank.first_column(slot) for slot in (0, left, right)] == [-1, 1, 4]
    new = weights(4)
    slot = bank.load(pack({"site": new}))
    assert bank.num_free_columns == 0
    assert [bank.first_column(slot) for slot in (left, right, slot)] == [0, 2, 5]
    x = torch.randn(1, 3, 6)
    bank.select([left, right, slot])
    y = site(x)
    for token, (a, b) in enumerate([*kept, new]):
        torch.testing.assert_close(y[0, token], site.base(x[0, token]) + (x[0, token] @ a.T) @ b)
    bank.unload(left)
    bank.select([0, right, slot])
    a, b = kept[1]
    expected = other.base(x)
    expected[0, 1] += (x[0, 1] @ a.T) @ b
    torch.testing.assert_close(other(x), expected)


@pytest.mark.usefixtures("update")
def test_a_former_owner_leaves_nothing_behind() -> None:
    """An adapter that skips a site gets columns there too; a former owner's weights must be gone."""
    bank, site = make_bank()
    other = bank.wrap("other", nn.Linear(6, 5))
    bank.unload(bank.load(pack({"site": weights(3), "other": weights(3)})))
    slot = bank.load(pack({"other": weights(3)}))
    bank.load(pack({"site": weights(2)}))  # keeps `site` from being skipped
    x = torch.randn(1, 1, 6)
    bank.select([slot])
    torch.testing.assert_close(site(x), site.base(x))
    assert not torch.allclose(other(x), other.base(x))


@pytest.mark.usefixtures("update")
def test_a_former_owner_leaves_nothing_where_a_site_has_a_smaller_rank() -> None:
    bank, site = make_bank()
    other = bank.wrap("other", nn.Linear(6, 5))
    bank.unload(bank.load(pack({"site": weights(4), "other": weights(4)})))
    narrow, wide = weights(1), weights(4)
    slot = bank.load(pack({"site": narrow, "other": wide}))
    x = torch.randn(1, 1, 6)
    bank.select([slot])
    for linear, (a, b) in ((site, narrow), (other, wide)):
        torch.testing.assert_close(linear(x), linear.base(x) + (x @ a.T) @ b)


def test_few_columns_are_multiplied_with_all_tokens_many_are_not() -> None:
    bank, _ = make_bank(width=32, num_slots=16)
    slots = [bank.load(pack({"site": weights(2)})) for _ in range(16)]
    for slot in slots:
        bank.select([slot] * 8)
        assert isinstance(bank.update, MaskedUpdate)
    bank.select(slots)
    assert isinstance(bank.update, SparseUpdate)


@pytest.mark.usefixtures("update")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_join_outputs_of_any_dtype(dtype: torch.dtype) -> None:
    """A base in bfloat16 beside a bank in float32, and the other way round."""
    bank, site = make_bank()
    other = torch.bfloat16 if dtype is torch.float32 else torch.float32
    site.lora_b = site.lora_b.to(other)
    a, b = weights(3)
    bank.select([bank.load(pack({"site": (a, b)}))])
    y, x = torch.ones(1, 5, dtype=dtype), torch.randn(1, 6)
    site.add_update(y, x)
    torch.testing.assert_close(y.float(), 1 + (x @ a.T) @ b, rtol=0.05, atol=0.05)


def test_room_is_columns_and_slots() -> None:
    bank, _ = make_bank(width=8, num_slots=2)
    assert bank.has_room(8)
    assert not bank.has_room(9)
    slots = [bank.load(pack({"site": weights(1)})) for _ in range(2)]
    assert not bank.has_room(1), "no slot is left"
    bank.unload(slots[0])
    assert bank.has_room(7)


class Tenants:
    """A bank of three sites, two of which read the same input, and what ought to be in it."""

    def __init__(self, seed: int, *, width: int, num_slots: int, is_stacked: bool) -> None:
        self.random = random.Random(seed)
        self.bank, first = make_bank(width, num_slots)
        self.sites = [first, *(self.bank.wrap(n, nn.Linear(6, o)) for n, o in [("v", 3), ("o", 7)])]
        self.stacks = []
        if is_stacked:
            self.stacks = [StackedProjection(self.sites[:2]), StackedProjection(self.sites[2:])]
        self.weights: dict[int, tuple[int, SiteWeights]] = {}  # slot -> rank, weights

    def new(self, rank: int) -> SiteWeights:
        """It skips some sites, and has a smaller rank in others."""
        names = self.random.sample(list(self.bank.sites), self.random.randint(1, 3))
        ranks = [rank, *(self.random.randint(1, rank) for _ in names[1:])]
        return {
            name: (torch.randn(r, 6), torch.randn(r, self.bank.sites[name].base.out_features))
            for name, r in zip(names, ranks, strict=True)
        }

    def load(self, rank: int, weights: SiteWeights | None = None) -> int:
        weights = weights or self.new(rank)
        slot = self.bank.load(pack(weights))
        assert slot not in self.weights
        self.weights[slot] = rank, weights
        return slot

    def unload(self, slot: int) -> None:
        self.bank.unload(slot)
        del self.weights[slot]

    def check(self) -> None:
        bank = self.bank
        assert bank.num_free_columns == bank.width - sum(rank for rank, _ in self.weights.values())
        begins, ends = bank.bounds.tolist()
        taken: set[int] = set()
        for slot, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if slot in self.weights:
                assert end - begin == self.weights[slot][0]
                assert 0 <= begin < end <= bank.width
                assert taken.isdisjoint(range(begin, end))
                taken.update(range(begin, end))
            else:
                assert (begin, end) == (bank.width, 0)
        slots = [0, *self.weights, 0, *self.weights]
        self.random.shuffle(slots)
        x = torch.randn(1, len(slots), 6)
        expected = {name: site.base(x)[0] for name, site in bank.sites.items()}
        for token, slot in enumerate(slots):
            for name, (a, b) in self.weights[slot][1].items() if slot else ():
                expected[name][token] += (x[0, token] @ a.T) @ b
        bank.select(slots)
        for name, site in bank.sites.items():
            torch.testing.assert_close(site(x)[0], expected[name])
        names = iter(expected)
        for stack in self.stacks:  # as kernels compute it: all of x A, masked, with all of B
            z = stack.with_hidden(x[0])
            assert torch.isfinite(stack.b).all(), "times a masked zero it would be NaN"
            for i, outputs in enumerate(stack.outputs):
                hidden = z[:, stack.num_outputs :][:, i * bank.width : (i + 1) * bank.width]
                columns = torch.arange(bank.width)
                own = (columns >= bank.bounds[0, slots, None]) & (
                    columns < bank.bounds[1, slots, None]
                )
                update = hidden.where(own, 0) @ stack.b[:, outputs]
                torch.testing.assert_close(z[:, outputs] + update, expected[next(names)])


@pytest.mark.usefixtures("update")
@pytest.mark.parametrize("is_stacked", [False, True], ids=["sites", "stacks"])
@pytest.mark.parametrize("seed", range(6))
def test_whoever_comes_and_goes_each_keeps_its_own_weights(seed: int, is_stacked: bool) -> None:
    """Ranks 1 to 32, in banks where they fit tightly."""
    generator = random.Random(seed)
    tenants = Tenants(
        seed,
        width=generator.randint(32, 100),
        num_slots=generator.randint(2, 12),
        is_stacked=is_stacked,
    )
    num_moves = 0
    for _ in range(40):
        rank = min(generator.randint(1, 32), generator.randint(1, 32))
        before = dict(tenants.bank._columns)
        if tenants.bank.has_room(rank):
            tenants.load(rank)
        elif tenants.weights:
            tenants.unload(generator.choice(list(tenants.weights)))
        num_moves += any(tenants.bank._columns.get(s, c) != c for s, c in before.items())
        tenants.check()
    assert num_moves, "nothing was in the way"


class FailsAt(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One operation on tensors fails, of a copy of many after half are made; then whatever takes memory on a GPU."""

    TAKES_MEMORY = (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)

    def __init__(self, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_left = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_left -= 1
        if self.num_left < 0 and func in self.TAKES_MEMORY:
            raise torch.OutOfMemoryError("still out of memory")
        if self.num_left == 0:
            if func is torch.ops.aten._foreach_copy_.default:
                half = len(args[0]) // 2
                func(args[0][:half], args[1][:half])
            raise torch.OutOfMemoryError("out of memory")
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("update")
@pytest.mark.parametrize("is_stacked", [False, True], ids=["sites", "stacks"])
def test_whatever_fails_in_a_load_the_others_stay_as_they_are(is_stacked: bool) -> None:
    for number in count(1):
        tenants = Tenants(0, width=16, num_slots=4, is_stacked=is_stacked)
        # Holes of one column, of three and of four: two are in the way, and their new places overlap the old.
        first, _, third, _ = [tenants.load(rank) for rank in (1, 2, 3, 6)]
        tenants.unload(first)
        tenants.unload(third)
        weights = tenants.new(7)
        packed = pack(weights)
        mode = FailsAt(number)
        try:
            with mode:
                slot = tenants.bank.load(packed)
        except torch.OutOfMemoryError:
            tenants.check()
            assert tenants.bank.has_room(7)
            tenants.load(7, weights)
        else:
            tenants.weights[slot] = 7, weights
        tenants.check()
        if mode.num_left > 0:
            assert number > 20
            break
