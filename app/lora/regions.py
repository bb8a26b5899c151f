"""Contiguous ranges, given out and given back: of a bank's columns, of a store's tokens. Plain Python."""


class RegionAllocator:
    """First fit."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = [(0, capacity)]  # (start, length), ordered, never touching

    @property
    def num_free(self) -> int:
        return sum(length for _, length in self._free)

    def allocate(self, length: int) -> int | None:
        """The start of a region of `length` tokens, or None."""
        for i, (start, free) in enumerate(self._free):
            if free >= length:
                rest = [(start + length, free - length)] if free > length else []
                self._free[i : i + 1] = rest
                return start
        return None

    def release(self, start: int, length: int) -> None:
        self._free.append((start, length))
        self._free.sort()
        merged = self._free[:1]
        for begin, size in self._free[1:]:
            last_begin, last_size = merged[-1]
            if last_begin + last_size == begin:
                merged[-1] = (last_begin, last_size + size)
            else:
                merged.append((begin, size))
        self._free = merged
