"""Triton kernels against their reference, for both ways to lay out a layer; on a GPU, or in Triton's interpreter."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from app.lora.bank import LoraBank
from app.model.decoder import Decoder
from app.model.kernels import Kernels
from app.model.loading import load_base_model
from app.model.operations import Attention, Batch, Operations
from app.model.projection import StackedProjection
from app.model.step import Span, Step
from tests.app.harness import make_request, pack, peft_greedy, start_engine
from tests.app.tiny import Tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HIDDEN, NUM_HEADS, HEAD_DIM, NUM_PLACES = 40, 4, 24, 120
RANKS = (3, 30, 8)


class Case:
    """A step of two prompts (one in its second chunk) and single tokens, over three adapters and the base.

    `num_tokens`: instead that many single tokens, of all adapters in no order.
    """

    def __init__(
        self,
        sizes: list[int],
        *,
        has_adapters: bool = True,
        width: int = 48,
        num_tokens: int | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.bank = LoraBank(width=width, num_slots=4, dtype=torch.float32, device=DEVICE)
        self.projection = StackedProjection(
            [
                self.bank.wrap(f"s{i}", nn.Linear(HIDDEN, size, bias=i == 0, device=DEVICE))
                for i, size in enumerate(sizes)
            ]
        )
        slots = [
            self.bank.load(
                pack(
                    {
                        name: (torch.randn(rank, HIDDEN), torch.randn(rank, site.base.out_features))
                        for name, site in self.bank.sites.items()
                    }
                )
            )
            for rank in ((width - 50, *RANKS) if width > 128 else RANKS)
        ]
        spans = [Span(0, 20, 0, 0), Span(20, 1, 16, 30), Span(21, 3, 18, 50), Span(24, 1, 0, 75)]
        owners = [slots[-3], 0, *slots[-2:]] if has_adapters else [0] * 4
        if num_tokens is not None:
            spans = [Span(i, 1, 0, i) for i in range(num_tokens)]
            # The last first, so that one token is enough to have an adapter.
            owners = [[slots[-1], 0, *slots][7 * i % (len(slots) + 2)] for i in range(num_tokens)]
        num_tokens = num_tokens or 25
        step = Step(
            token_ids=[0] * num_tokens,
            sources=[-1] * num_tokens,
            positions=[p for s in spans for p in range(s.position, s.num_keys)],
            slots=[o for s, o in zip(spans, owners, strict=True) for _ in range(s.length)],
            spans=spans,
            last_rows=[s.start + s.length - 1 for s in spans],
        )
        ids = torch.zeros(num_tokens, dtype=torch.long, device=DEVICE)
        self.reference = Operations(self.bank)
        self.kernels = Kernels(self.bank)
        self.batch = self.reference.prepare(step, ids)
        self.packed = self.kernels.prepare(step, ids)
        self.x = torch.randn(num_tokens, HIDDEN, device=DEVICE)

    def z(self, operations: Operations, batch: Batch) -> torch.Tensor:
        return operations.project(self.projection, self.x, batch)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE)


@pytest.mark.parametrize(("has_adapters", "width"), [(True, 48), (True, 300), (False, 48)])
@pytest.mark.parametrize("size", [70, 71])
def test_add(size: int, has_adapters: bool, width: int) -> None:
    case = Case([size], has_adapters=has_adapters, width=width)
    residual = random(25, size)
    expected = case.reference.add(
        residual.clone(), case.z(case.reference, case.batch), case.projection, case.batch
    )
    z = case.z(case.kernels, case.packed)
    torch.testing.assert_close(
        case.kernels.add(residual.clone(), z, case.projection, case.packed),
        expected,
        rtol=1e-4,
        atol=1e-4,
    )
    # The formula itself, for one token of the widest adapter.
    update = nn.functional.linear(case.x[21], case.projection.sites[0].base.weight)
    assert (expected[21] - residual[21] - update).abs().max() > 1 or not has_adapters


@pytest.mark.parametrize("has_adapters", [True, False])
@pytest.mark.parametrize("sizes", [[140], [70, 70]], ids=["one site", "two sites"])
def test_gate(sizes: list[int], has_adapters: bool) -> None:
    case = Case(sizes, has_adapters=has_adapters)
    expected = case.reference.gate(
        case.z(case.reference, case.batch), case.projection, case.batch, torch.float32
    )
    z = case.z(case.kernels, case.packed)
    actual = case.kernels.gate(z, case.projection, case.packed, torch.float32)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("has_adapters", [True, False])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("is_separate", [False, True], ids=["one site", "three sites"])
def test_rotate_and_store(is_separate: bool, num_kv_heads: int, has_adapters: bool) -> None:
    sizes = [n * HEAD_DIM for n in (NUM_HEADS, num_kv_heads, num_kv_heads)]
    case = Case(sizes if is_separate else [sum(sizes)], has_adapters=has_adapters)
    angles = random(25, HEAD_DIM // 2)
    rotary = angles.cos(), angles.sin()
    results = []
    for operations, batch in ((case.reference, case.batch), (case.kernels, case.packed)):
        keys = torch.zeros(NUM_PLACES, num_kv_heads, HEAD_DIM, device=DEVICE)
        values = torch.zeros_like(keys)
        query = operations.rotate_and_store(
            case.z(operations, batch), case.projection, batch, rotary, (keys, values)
        )
        results.append((query, keys, values))
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert results[0][1][30 + 16].any()
    assert not results[0][1][30 + 17].any()


# Tiles of 16 and 64 rows, blocks of 16 and 32 columns; with 64 and 128 the last block of outputs is whole, with 96 not.
@pytest.mark.parametrize(
    ("num_tokens", "width", "head_dim"),
    [
        *[(1, 41, 64), (1, 64, 96), (2, 48, 128), (3, 48, 64), (3, 512, 96), (16, 64, 128)],
        *[(17, 41, 96), (64, 64, 64), (64, 300, 64), (65, 48, 64), (65, 300, 96), (130, 41, 128)],
        *[(192, 64, 96), (193, 64, 64), (193, 300, 96)],
    ],
)
@torch.no_grad()
def test_any_number_of_tokens_in_any_order(num_tokens: int, width: int, head_dim: int) -> None:
    size = head_dim if head_dim != 96 else 70
    rotary = [random(num_tokens, head_dim // 2) for _ in range(2)]
    residual = random(num_tokens, size)

    def results(sizes: list[int], has_kernels: bool) -> list[torch.Tensor]:
        case = Case(sizes, width=width, num_tokens=num_tokens)
        case.x.mul_(0.1)
        operations = case.kernels if has_kernels else case.reference
        batch = case.packed if has_kernels else case.batch
        z = case.z(operations, batch)
        store = torch.zeros(2, num_tokens, 1, head_dim, device=DEVICE)
        if sum(sizes) == size:
            return [operations.add(residual.clone(), z, case.projection, batch)]
        if sum(sizes) == 2 * size:
            return [operations.gate(z, case.projection, batch, torch.float32)]
        query = operations.rotate_and_store(
            z, case.projection, batch, (rotary[0], rotary[1]), (store[0], store[1])
        )
        return [query, store]

    for sizes in (
        [size],
        [2 * size],
        [size, size],
        [4 * head_dim],
        [2 * head_dim] + 2 * [head_dim],
    ):
        for actual, expected in zip(results(sizes, True), results(sizes, False), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sliding_window", [None, 5, 17])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_attend(num_kv_heads: int, sliding_window: int | None) -> None:
    case = Case([70])
    query = random(25, NUM_HEADS, HEAD_DIM)
    # What no sequence has written must not count, whatever it holds.
    keys = torch.full((NUM_PLACES, num_kv_heads, HEAD_DIM), float("nan"), device=DEVICE)
    values = keys.clone()
    assert case.batch.attention
    for span in case.batch.attention.spans:
        own = slice(span.region_start, span.region_start + span.num_keys)
        keys[own], values[own] = (random(span.num_keys, num_kv_heads, HEAD_DIM) for _ in range(2))
    asked = Attention(0.3, sliding_window)
    expected = case.reference.attend(query, (keys, values), case.batch, asked)
    actual = case.kernels.attend(query, (keys, values), case.packed, asked)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_normalise() -> None:
    case = Case([70])
    weight = random(HIDDEN)
    torch.testing.assert_close(
        case.kernels.normalise(case.x, weight, 1e-5), case.reference.normalise(case.x, weight, 1e-5)
    )


@pytest.mark.parametrize(("size", "width"), [(70, 48), (128, 64)], ids=["masks", "no masks"])
def test_a_neighbours_infinity_cannot_pass(size: int, width: int) -> None:
    case = Case([size], width=width)
    z = case.z(case.kernels, case.packed)
    z[20:24, size:] = float("inf")
    assert case.packed.columns is not None
    assert case.packed.bounds is not None
    case.packed.columns[:, 21:24] = case.packed.columns[:, :1]
    case.packed.bounds[0, 1] = case.packed.bounds[0].min()
    case.packed.bounds[1, 1] = case.packed.bounds[1].max()
    out = case.kernels.add(random(25, size), z, case.projection, case.packed)
    assert torch.isfinite(out[:21]).all()
    assert torch.isfinite(out[24]).all()
    assert not torch.isfinite(out[21:24]).any(), "the neighbours were not wild after all"


def test_padding_writes_only_to_the_spare_place() -> None:
    """A packed step that is longer than its tokens, as CUDA graphs have it."""
    case = Case([3 * NUM_HEADS * HEAD_DIM])
    step = Step([0], [-1], [2], [0], [Span(0, 1, 2, 7)], [0])
    packed = torch.tensor(step.pack(25, NUM_PLACES - 1, 16), dtype=torch.int32, device=DEVICE)
    batch = case.kernels.as_batch(packed, packed[0], 1, has_adapters=True)
    keys = torch.zeros(NUM_PLACES, NUM_HEADS, HEAD_DIM, device=DEVICE)
    values = torch.zeros_like(keys)
    rotary = random(25, HEAD_DIM // 2), random(25, HEAD_DIM // 2)
    z = case.z(case.kernels, batch)
    query = case.kernels.rotate_and_store(z, case.projection, batch, rotary, (keys, values))
    assert query.shape == (25, NUM_HEADS, HEAD_DIM)
    written = keys.flatten(1).any(1).nonzero().flatten().tolist()
    assert written == [9, NUM_PLACES - 1]
    case.kernels.attend(query, (keys, values), batch, Attention(0.3, None))


@pytest.mark.parametrize("has_decoder", [True, False], ids=["own decoder", "model's code"])
def test_tokens_equal_pefts(tiny: Tiny, has_decoder: bool) -> None:
    """As a GPU without graphs runs: kernels, and the next step before the last one's tokens are known."""
    model = load_base_model(
        tiny.folder, device=DEVICE.type, compute_dtype="float32", base_weights="packed"
    )
    engine = start_engine(model)
    forward = engine._forward
    forward._graphs = None
    forward._operations = Kernels(engine._bank)
    forward.is_asynchronous = True
    assert forward._decoder is not None
    attention = {i: layer.attention for i, layer in enumerate(forward._decoder._layers)}
    decoder = Decoder(model.model, attention, StackedProjection)
    forward._decoder = decoder if has_decoder else None
    try:
        cases = list(zip([[7] * 70, [8, 9], [10] * 20], [None, *tiny.adapters[:2]], strict=True))
        requests = [make_request(prompt, a, max_new_tokens=4) for prompt, a in cases]
        engine.submit(*(r.sequence for r in requests))
        for request, case in zip(requests, cases, strict=True):
            assert request.result().token_ids == peft_greedy(tiny.reference, *case, 4)
    finally:
        engine.stop()
