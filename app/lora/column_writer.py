"""An adapter's weights, from one piece of a GPU's memory into the bank in one launch; LoraBank.write is the reference."""

import torch
import triton
from torch import Tensor

from app.lora.bank import LoraBank
from app.lora.column_kernel import write_columns
from app.lora.weights import LoraLayout, LoraWeights, SiteShape

_BLOCK = 2048  # values of a row that one program writes
_MAX_LAYOUTS = 64


class ColumnWriter:
    """LoraBank.write takes 256 views and copies for 128 sites: 2.5 ms of the engine's time on an H200's host, at each load."""

    def __init__(self, bank: LoraBank) -> None:
        """After the sites' matrices have come to where they stay."""
        self._bank = bank
        matrices = [m for site in bank.sites.values() for m in (site.lora_a, site.lora_b)]
        rows = [(m.data_ptr(), m.stride(0), m.shape[1]) for m in matrices]
        # [matrices, 3]: address, values from one column to the next, values of a column
        self._matrices = torch.tensor(rows, device=bank.device)
        self._longest = max(length for _, _, length in rows)
        # With even lengths all parts of an adapter's weights begin evenly too.
        self._is_aligned = all(p % 16 == s % 8 == n % 8 == 0 for p, s, n in rows)
        self._parts: dict[LoraLayout, Tensor] = {}

    def __call__(self, columns: range, weights: LoraWeights) -> None:
        """Writes `columns` of every site, zeros where it has none. The weights lie on the bank's device."""
        grid = (len(self._matrices), len(columns), triton.cdiv(self._longest, _BLOCK))
        write_columns[grid](
            self._matrices,
            self._parts_of(weights.layout),
            weights.data.view(self._bank.dtype),
            columns.start,
            ALIGNED=self._is_aligned,
            N=_BLOCK,
        )

    def _parts_of(self, layout: LoraLayout) -> Tensor:
        """[matrices, 2]: where each begins in the weights, and its rank, 0 if they have none."""
        found = self._parts.get(layout)
        if found is None:
            begins = layout.begins
            ranks = {site.name: site.rank for site in layout.sites}
            parts = [
                (begin, ranks.get(name, 0))
                for name in self._bank.sites
                for begin in begins.get(name, (0, 0))
            ]
            if len(self._parts) == _MAX_LAYOUTS:
                self._parts.clear()
            found = self._parts[layout] = torch.tensor(parts, device=self._bank.device)
        return found


def is_right(writer: ColumnWriter, bank: LoraBank) -> bool:
    """Whether it writes what plain copies do, in the first columns of a bank that nobody uses; which are empty again then."""
    columns = range(min(3, bank.width))
    names = list(bank.sites)[1:]  # a site that an adapter does not target is emptied
    layout = LoraLayout(
        tuple(
            SiteShape(name, len(columns), base.in_features, base.out_features)
            for name, base in ((name, bank.sites[name].base) for name in names)
        ),
        bank.a_dtype,
        bank.dtype,
    )
    data = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=bank.device)
    for part in layout.parts(data):
        part.copy_(torch.arange(len(part), device=bank.device) % 251 - 100)
    weights = LoraWeights(layout, data)

    def written() -> list[Tensor]:
        return [m.clone() for site in bank.sites.values() for m in site.weights_of(columns)]

    bank.write(columns, weights.sites)
    expected = written()
    bank.write(columns, {})
    writer(columns, weights)
    found = written()
    bank.write(columns, {})
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
