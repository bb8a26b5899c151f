"""One launch writes what hundreds of copies do; on a GPU, or in Triton's interpreter."""

import random

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from app.lora.bank import LoraBank
from app.lora.column_writer import ColumnWriter, is_right
from app.lora.weights import LoraWeights
from app.model.projection import StackedProjection
from tests.app.harness import pack

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_bank(in_features: int, out_features: list[int]) -> LoraBank:
    """The first two sites read the same input."""
    torch.manual_seed(0)
    bank = LoraBank(width=12, num_slots=4, dtype=torch.float32, device=DEVICE)
    sites = [
        bank.wrap(f"s{i}", nn.Linear(in_features, size, bias=False, device=DEVICE))
        for i, size in enumerate(out_features)
    ]
    StackedProjection(sites[:2])
    return bank


def make_weights(bank: LoraBank, rank: int, seed: int) -> LoraWeights:
    """It skips a site, and has a smaller rank in others."""
    rng = random.Random(seed)
    names = rng.sample(list(bank.sites), len(bank.sites) - 1)
    ranks = [rank, *(rng.randint(1, rank) for _ in names[1:])]
    return pack(
        {
            name: (
                torch.randn(r, bank.sites[name].base.in_features, device=DEVICE),
                torch.randn(r, bank.sites[name].base.out_features, device=DEVICE),
            )
            for name, r in zip(names, ranks, strict=True)
        }
    )


def matrices(bank: LoraBank) -> list[torch.Tensor]:
    return [m for site in bank.sites.values() for m in (site.lora_a, site.lora_b)]


@pytest.mark.parametrize(("in_features", "out_features"), [(16, [32, 8, 2056]), (5, [7, 3, 4100])])
def test_columns_are_written_as_by_copies(in_features: int, out_features: list[int]) -> None:
    bank = make_bank(in_features, out_features)
    writer = ColumnWriter(bank)
    for seed, (start, rank) in enumerate([(0, 1), (1, 4), (3, 8), (8, 4), (0, 12)]):
        weights = make_weights(bank, rank, seed)
        for matrix in matrices(bank):
            matrix.normal_()
        before = [m.clone() for m in matrices(bank)]
        columns = range(start, start + rank)
        bank.write(columns, weights.sites)
        expected = [m.clone() for m in matrices(bank)]
        for matrix, old in zip(matrices(bank), before, strict=True):
            matrix.copy_(old)
        writer(columns, weights)
        for found, copied in zip(matrices(bank), expected, strict=True):
            assert torch.equal(found, copied)


def test_a_load_uses_it_for_what_is_on_the_device() -> None:
    bank = make_bank(16, [32, 8, 24])
    calls = []
    writer = ColumnWriter(bank)

    def note(columns: range, weights: LoraWeights) -> None:
        calls.append(columns)
        writer(columns, weights)

    bank.writer = note
    weights = make_weights(bank, 4, 0)
    slot = bank.load(weights)
    assert calls == [range(4)]
    name, (a, b) = next(iter(weights.sites.items()))
    own = bank.sites[name].weights_of(range(bank.first_column(slot), 4))
    assert torch.equal(own[0], a)
    assert torch.equal(own[1], b)


def test_it_is_tried_before_it_is_used() -> None:
    bank = make_bank(16, [32, 8, 24])
    writer = ColumnWriter(bank)
    assert is_right(writer, bank)
    assert not any(m.any() for m in matrices(bank))
    # From one column to the next, in the second site's A; by a whole vector, or a GPU would not go on.
    writer._matrices[2, 1] += 8
    assert not is_right(writer, bank)
