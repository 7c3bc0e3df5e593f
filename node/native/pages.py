"""Pages of keys and values, which caches share by counting, and the memory that they are made of. For one thread."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.native.packed import memory

# Pages of small models come from the system together, up to so much at once.
SLAB_BYTES: Final = 1 << 20
# So much stays for the next session, or a quarter of what is in use: to have it from the system again costs a fault
# for each 4 KiB of it, a millisecond for a page of a small model.
SPARE_BYTES: Final = 16 << 20
SPARE_SHARE: Final = 4


class Slab:
    """Memory of pages of one size, and which of them are free."""

    __slots__ = ("count", "free", "memory", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = max(1, SLAB_BYTES // size)
        self.memory = memory(self.count * size)
        self.free = list(reversed(range(self.count)))

    @property
    def is_idle(self) -> bool:
        """Whether nobody has any of it."""
        return len(self.free) == self.count


class Page:
    """Keys and values of `positions` positions of some blocks: `memory` [blocks, bytes].

    Whoever holds it releases it once. It is written to by its only holder, and by nobody while there are more.
    """

    __slots__ = ("_holders", "_pool", "_slab", "_start", "memory", "positions")

    def __init__(self, pool: PagePool, slab: Slab, blocks: int, positions: int) -> None:
        """Use `PagePool.take`."""
        self.positions = positions
        self._pool = pool
        self._slab = slab
        self._start = slab.free.pop()
        self._holders = 1
        begin = self._start * slab.size
        self.memory: NDArray[np.uint8] = slab.memory[begin : begin + slab.size].reshape(blocks, -1)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.memory.nbytes

    @property
    def is_shared(self) -> bool:
        """Whether others hold it too."""
        return self._holders > 1

    def hold(self) -> Page:
        """One holder more."""
        assert self._holders
        self._holders += 1
        return self

    def release(self) -> None:
        """One holder less; with the last of them the memory is free for another page."""
        assert self._holders
        self._holders -= 1
        if not self._holders:
            self._pool._give(self._slab, self._start)


class PagePool:
    """Memory for pages, used again and again. What is on a page from its last use stays on it.

    Pages of one size lie together, so what is free of one size is of no use to another; it goes back to the system as
    whole slabs, where more of them are free than is worth keeping.
    """

    def __init__(self) -> None:
        self.used_bytes = 0
        self.free_bytes = 0
        self._open: dict[int, dict[Slab, None]] = {}  # by size, those that have room
        self._idle: dict[Slab, None] = {}

    def take(self, blocks: int, positions: int, row_bytes: int) -> Page:
        """A page of its own, of so many positions of `row_bytes` in each of `blocks` blocks. Raises: MemoryError."""
        size = blocks * positions * row_bytes
        slabs = self._open.setdefault(size, {})
        slab = next(iter(slabs), None)
        if slab is None:
            slab = _mapped(size)
            slabs[slab] = None
            self.free_bytes += slab.count * size
        page = Page(self, slab, blocks, positions)
        self._idle.pop(slab, None)
        if not slab.free:
            self._close(slab)
        self.used_bytes += size
        self.free_bytes -= size
        return page

    def _give(self, slab: Slab, start: int) -> None:
        slab.free.append(start)
        self._open.setdefault(slab.size, {})[slab] = None
        self.used_bytes -= slab.size
        self.free_bytes += slab.size
        if slab.is_idle:
            self._idle[slab] = None
        self._shrink()

    def _shrink(self) -> None:
        """Let go of what nobody uses, the longest unused first, until it is no more than is worth keeping."""
        spare = max(SPARE_BYTES, self.used_bytes // SPARE_SHARE)
        while self.free_bytes > spare and self._idle:
            slab = next(iter(self._idle))
            del self._idle[slab]
            self._close(slab)
            self.free_bytes -= slab.count * slab.size

    def _close(self, slab: Slab) -> None:
        """No page is taken from it for now."""
        slabs = self._open[slab.size]
        del slabs[slab]
        if not slabs:
            del self._open[slab.size]


def _mapped(size: int) -> Slab:
    try:
        return Slab(size)
    except OSError as error:
        raise MemoryError(f"no memory for a page of {size} bytes") from error
