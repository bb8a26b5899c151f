"""The LoRA weights of all resident adapters, stacked, so that one step serves any mix of them.

Per target linear layer two static tensors, A [width, in] and B [width, out]. An adapter of rank r owns any r columns;
ranks mix without padding. A boolean row of `table` says which columns the tokens of a slot may use:

    y = base(x) + mask(x @ A.T, not table[slot of token]) @ B

Scaling (alpha / r, rsLoRA, alpha_pattern) is folded into B. Slot 0 is the untouched base and owns no column. A load
writes free columns only, which no running token can see. Compare Punica (Chen et al. 2023, arXiv:2310.18547) and S-LoRA
(Sheng et al. 2023, arXiv:2311.03285), which gather instead of masking.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# site -> (A [rank, in], B [rank, out]) with the scaling folded into B
SiteWeights = Mapping[str, tuple[Tensor, Tensor]]


class BankedLinear(nn.Module):
    """A linear layer of the base model plus the adapters' low-rank updates."""

    def __init__(self, base: nn.Linear, bank: "LoraBank") -> None:
        super().__init__()
        self.base = base
        self._bank = bank
        dtype, device = bank.dtype, base.weight.device
        self.lora_a = torch.zeros(bank.width, base.in_features, dtype=dtype, device=device)
        self.lora_b = torch.zeros(bank.width, base.out_features, dtype=dtype, device=device)
        self.num_adapters = 0  # resident adapters that target this layer

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        y: Tensor = self.base(x)
        foreign = self._bank.foreign
        if foreign is None or self.num_adapters == 0:
            return y
        used = foreign.shape[-1]
        # [tokens, used columns]
        hidden = x.flatten(0, -2).to(self.lora_a.dtype) @ self.lora_a[:used].T
        # Filled, not multiplied: a neighbour's inf times 0 would be NaN.
        hidden.masked_fill_(foreign, 0)
        update = hidden @ self.lora_b[:used]
        return y + update.view_as(y)


class LoraBank:
    """Gives out slots and columns, and holds the mask of the step that is running."""

    def __init__(
        self, *, width: int, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.width = width
        self.dtype = dtype
        self.device = device
        self.sites: dict[str, BankedLinear] = {}
        self.foreign: Tensor | None = None  # [tokens, used columns]; None: nobody needs an adapter
        # [slots, width], True = this slot's column
        self.table = torch.zeros(num_slots + 1, width, dtype=torch.bool, device=device)
        # [2, slots], the first column of each and the end of its columns; without any: width and 0
        self.bounds = torch.tensor([[width], [0]], dtype=torch.int32, device=device)
        self.bounds = self.bounds.repeat(1, num_slots + 1)
        self._free_slots = list(range(num_slots, 0, -1))
        self._free_columns = list(range(width))
        self._columns: dict[int, list[int]] = {}  # slot -> its columns
        self._slot_sites: dict[int, list[str]] = {}

    def wrap(self, name: str, linear: nn.Linear) -> BankedLinear:
        """Makes `linear` a site of this bank."""
        self.sites[name] = BankedLinear(linear, self)
        return self.sites[name]

    @property
    def num_free_columns(self) -> int:
        return len(self._free_columns)

    def has_room(self, rank: int) -> bool:
        return bool(self._free_slots) and rank <= len(self._free_columns)

    def load(self, rank: int, weights: SiteWeights) -> int:
        """Copies an adapter into free columns; returns its slot. Call only if `has_room(rank)`."""
        slot = self._free_slots.pop()
        # The lowest free ones, so that the columns in use stay few and to the left.
        columns, self._free_columns = self._free_columns[:rank], self._free_columns[rank:]
        self._columns[slot], self._slot_sites[slot] = columns, []
        try:
            index = torch.tensor(columns, device=self.table.device)
            for name, (a, b) in weights.items():
                site = self.sites[name]
                site.num_adapters += 1
                self._slot_sites[slot].append(name)
                own = index[: a.shape[0]]  # a site may have a smaller rank than the largest
                site.lora_a[own] = a.to(site.lora_a)
                site.lora_b[own] = b.to(site.lora_b)
            self.table[slot, index] = True
            self._set_bounds(slot, columns[0], columns[-1] + 1)
        except RuntimeError:  # out of device memory
            self.unload(slot)
            raise
        return slot

    def unload(self, slot: int) -> None:
        """Frees an adapter's columns. Call only when no running sequence uses it."""
        columns = self._columns.pop(slot)
        index = torch.tensor(columns, device=self.table.device)
        self.table[slot] = False
        self._set_bounds(slot, self.width, 0)
        for name in self._slot_sites.pop(slot):
            site = self.sites[name]
            # The next owner may not target this site, yet may use these columns in it.
            site.lora_a[index] = 0
            site.lora_b[index] = 0
            site.num_adapters -= 1
        self._free_columns = sorted([*self._free_columns, *columns])
        self._free_slots.append(slot)

    def _set_bounds(self, slot: int, begin: int, end: int) -> None:
        self.bounds[:, slot] = torch.tensor([begin, end], dtype=torch.int32)

    def select(self, slots: list[int]) -> None:
        """Prepares a step: `slots` [tokens] says whose adapter each token uses."""
        if not any(slots):
            self.foreign = None
            return
        used = 1 + max(max(self._columns[slot]) for slot in set(slots) if slot)
        index = torch.tensor(slots, device=self.table.device)
        self.foreign = ~self.table[index, :used]
