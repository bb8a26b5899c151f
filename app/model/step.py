"""One forward pass as the engine asks for it: whose tokens, where they go, which of them yield a new one. Plain Python."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's tokens in a step: `length` of them at `start`; the first is number `position` of its sequence."""

    start: int
    length: int
    position: int
    region_start: int

    @property
    def num_keys(self) -> int:
        return self.position + self.length

    @property
    def places(self) -> range:
        """Where its tokens' keys and values go in the store."""
        return range(self.region_start + self.position, self.region_start + self.num_keys)


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass is given. All lists are [tokens], `last_rows` [sequences that get a new token]."""

    token_ids: list[int] = field(default_factory=list)
    # Row of the step before whose token this is, for one that has not reached the host; -1: see token_ids.
    sources: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    last_rows: list[int] = field(default_factory=list)

    @property
    def places(self) -> list[int]:
        return [place for span in self.spans for place in span.places]

    def pack(self, num_tokens: int, spare_place: int, block_tokens: int) -> list[list[int]]:
        """All of it as integers [10, num_tokens], padded by tokens that nobody reads and that write to `spare_place`.

        Rows: token ids, sources, positions, places, slots; blocks of at most `block_tokens` tokens of one sequence
        (first token, number of tokens, position, start of the region); last rows.
        """
        blocks: list[list[int]] = [[], [], [], []]
        for span in self.spans:
            for begin in range(0, span.length, block_tokens):
                blocks[0].append(span.start + begin)
                blocks[1].append(min(block_tokens, span.length - begin))
                blocks[2].append(span.position + begin)
                blocks[3].append(span.region_start)
        rows = [
            self.token_ids,
            self.sources,
            self.positions,
            self.places,
            self.slots,
            *blocks,
            self.last_rows,
        ]
        fillers = [0, -1, 0, spare_place, 0, 0, 0, 0, 0, 0]
        return [
            row + [filler] * (num_tokens - len(row))
            for row, filler in zip(rows, fillers, strict=True)
        ]
