"""The LoRA weights of all resident adapters, stacked, so that one step serves any mix of them.

Per target linear layer two static tensors, A [width, in] and B [width, out]. An adapter of rank r owns r neighbouring
columns; ranks mix without padding. `bounds` says which columns the tokens of a slot may use:

    y = base(x) + mask(x @ A.T, not within bounds of the token's slot) @ B      (update.py, model/triton_kernels.py)

Scaling (alpha / r, rsLoRA, alpha_pattern) is folded into B. Slot 0 is the untouched base and owns no column. A load
writes free columns, which no running token can see, and moves what is in its way between two steps. All of B is finite at
any time: kernels multiply a neighbour's by zero. Compare Punica (Chen et al. 2023, arXiv:2310.18547) and S-LoRA (Sheng et
al. 2023, arXiv:2311.03285), which gather instead of masking.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from app.lora.regions import RegionAllocator
from app.lora.update import LoraUpdate, MaskedUpdate, SparseUpdate
from app.lora.weights import LoraWeights, SiteWeights

# How much faster a CPU multiplies with a column when it multiplies all tokens with it.
_DENSE_GAIN = 3


class BankedLinear(nn.Module):
    """A linear layer of the base model plus the adapters' low-rank updates."""

    def __init__(self, base: nn.Linear, bank: "LoraBank") -> None:
        super().__init__()
        self.base = base
        self._bank = bank
        device = base.weight.device
        self.lora_a = torch.zeros(bank.width, base.in_features, dtype=bank.a_dtype, device=device)
        self.lora_b = torch.zeros(bank.width, base.out_features, dtype=bank.dtype, device=device)
        self.slots: set[int] = set()  # of the adapters that target this layer

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        y: Tensor = self.base(x)
        self.add_update(y.flatten(0, -2), x.flatten(0, -2))
        return y

    def weights_of(self, columns: range) -> tuple[Tensor, Tensor]:
        """Views of A [columns, in] and B [columns, out]."""
        return self.lora_a[columns.start : columns.stop], self.lora_b[columns.start : columns.stop]

    def add_update(self, y: Tensor, x: Tensor) -> None:
        """Adds to y [tokens, out] what the step's adapters make of x [tokens, in]."""
        if self._bank.update is not None and self.slots:
            self._bank.update.add_to(y, x, self.lora_a, self.lora_b)


class LoraBank:
    """Gives out slots and columns, and knows whose the tokens of the running step are."""

    def __init__(
        self, *, width: int, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.width = width
        self.dtype = dtype
        self.a_dtype = SparseUpdate.A_DTYPE if device.type == "cpu" else dtype
        self.device = device
        self.sites: dict[str, BankedLinear] = {}
        self.update: LoraUpdate | None = None  # of the step; None: nobody needs an adapter
        # Writes weights that lie on a GPU faster than hundreds of copies.
        self.writer: Callable[[range, LoraWeights], None] | None = None
        # [2, slots], the first column of each and the end of its columns; without any: width and 0
        self.bounds = torch.tensor([[width], [0]], dtype=torch.int32, device=device)
        self.bounds = self.bounds.repeat(1, num_slots + 1)
        self._free_slots = list(range(num_slots, 0, -1))
        self._regions = RegionAllocator(width)
        self._columns: dict[int, range] = {}  # of each slot

    def wrap(self, name: str, linear: nn.Linear) -> BankedLinear:
        """Makes `linear` a site of this bank."""
        self.sites[name] = BankedLinear(linear, self)
        return self.sites[name]

    @property
    def num_free_columns(self) -> int:
        return self._regions.num_free

    def first_column(self, slot: int) -> int:
        """Where a slot's columns begin; -1: the base, which has none."""
        columns = self._columns.get(slot)
        return -1 if columns is None else columns.start

    def has_room(self, rank: int) -> bool:
        return bool(self._free_slots) and rank <= self.num_free_columns

    def load(self, weights: LoraWeights) -> int:
        """Copies an adapter into free columns; returns its slot. Call only if `has_room(weights.rank)`."""
        rank = weights.rank
        start = self._regions.allocate(rank)
        if start is None:
            self._compact()
            start = self._regions.allocate(rank)
            assert start is not None
        slot = self._free_slots.pop()
        self._columns[slot] = range(start, start + rank)
        try:
            for site in weights.layout.sites:
                self.sites[site.name].slots.add(slot)
            if self.writer is not None and weights.data.device.type == self.device.type:
                self.writer(self._columns[slot], weights)
            else:
                self.write(self._columns[slot], weights.sites)
            self._set_bounds(slot, start, start + rank)
        except RuntimeError:  # out of device memory
            self.unload(slot)
            raise
        return slot

    def unload(self, slot: int) -> None:
        """Frees an adapter's columns. Call only when no running sequence uses it."""
        columns = self._columns.pop(slot)
        for site in self.sites.values():
            site.slots.discard(slot)
        self._regions.release(columns.start, len(columns))
        self._free_slots.append(slot)
        self._set_bounds(slot, self.width, 0)

    def write(self, columns: range, weights: SiteWeights) -> None:
        """Copies weights to `columns` of every site, and zeros to where they have none: a former owner's are still there.

        All copies are one call: there are hundreds.
        """
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        emptied: list[Tensor] = []
        for name, site in self.sites.items():
            pair = weights.get(name, ())
            # A site may have a smaller rank than the largest.
            num_own = pair[0].shape[0] if pair else 0
            if num_own < len(columns):
                emptied += site.weights_of(columns[num_own:])
            if pair:
                targets += site.weights_of(columns[:num_own])
                sources += pair
        if targets:
            torch._foreach_copy_(targets, sources)
        if emptied:
            torch._foreach_zero_(emptied)

    def _compact(self) -> None:
        """Moves adapters to the left until all free columns are neighbours."""
        end = 0
        for slot, columns in sorted(self._columns.items(), key=lambda item: item[1].start):
            if columns.start == end:
                end = columns.stop
                continue
            # Copied before anything changes: memory may run out here, and the new place may overlap the old.
            weights = {
                name: (a.clone(), b.clone())
                for name, site in self.sites.items()
                for a, b in [site.weights_of(columns)]
            }
            place = range(end, end + len(columns))
            try:
                self.write(place, weights)
                self._set_bounds(slot, place.start, place.stop)
            except RuntimeError:  # running sequences may use it
                self.write(columns, weights)
                self._set_bounds(slot, columns.start, columns.stop)
                raise
            self._regions.release(columns.start, len(columns))
            start = self._regions.allocate(len(columns))
            assert start == place.start
            self._columns[slot], end = place, place.stop

    def _set_bounds(self, slot: int, begin: int, end: int) -> None:
        # Not copied from the host: that takes memory of the device, and this must work when there is none.
        self.bounds[0, slot].fill_(begin)
        self.bounds[1, slot].fill_(end)

    def select(self, slots: list[int]) -> None:
        """Prepares a step: `slots` [tokens] says whose adapter each token uses."""
        if not any(slots):
            self.update = None
            return
        num_own = sum(len(self._columns[slot]) for slot in slots if slot)
        used = sorted(column for slot in set(slots) if slot for column in self._columns[slot])
        is_dense = len(slots) * len(used) <= _DENSE_GAIN * num_own
        columns = torch.arange(self.width, device=self.device)
        begins, ends = self.bounds[:, slots, None]
        own = (columns >= begins) & (columns < ends)
        if is_dense or self.device.type != "cpu":
            self.update = MaskedUpdate(own, used)
        else:
            self.update = SparseUpdate(own)
