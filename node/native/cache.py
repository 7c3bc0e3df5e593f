"""A session's keys and values, in pages of 256 positions that it takes as it grows, and shares with its forks.

Copy on write: a page that others hold too is never written to, a copy is. So a fork costs nothing but counting, and
of one page, the last that is common, those who go on from it make copies of their own; the last of them none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.compute.interfaces import PAGE_POSITIONS, KvPage
from node.native.packed import TILE, address
from node.native.pages import Page, PagePool
from protocol.errors import LocalProtocolError
from protocol.model import Span

# Positions that a page may have. The first one of a session grows by being moved, which costs a copy of what is on
# it, so that a short session takes little; of later pages a smaller one is only the last of a bounded session.
SIZES = (32, 64, 128, PAGE_POSITIONS)


class PagedCache:
    """Keys and values for the blocks of `span`; `table` [blocks, pages] has the pages' addresses."""

    def __init__(
        self,
        span: Span,
        blocks: int,
        row_bytes: int,
        max_tokens: int | None = None,
        pool: PagePool | None = None,
    ) -> None:
        """row_bytes: of one position of one block; pool: where pages come from, without: its own."""
        self.span = span
        self.length = 0
        self.table: NDArray[np.uint64] = np.zeros((blocks, 0), np.uint64)
        self._row_bytes = row_bytes
        self._most = sys.maxsize if max_tokens is None else max_tokens
        self._pool = pool or PagePool()
        self._held: list[Page] = []

    def reserve(self, start: int, stop: int) -> None:
        """Forget what lies from `start` on, and make sure of pages for start:stop that nobody else holds.

        Raises: MemoryError; then the positions before `start` are still there.
        """
        self.length = start
        count = -(-stop // PAGE_POSITIONS)
        self._drop(count)
        for index in range(start // PAGE_POSITIONS, count):
            base = index * PAGE_POSITIONS
            kept, wanted = max(0, start - base), min(PAGE_POSITIONS, stop - base)
            if index == len(self._held):
                self._add(self._page(base, wanted))
            elif self._held[index].is_shared or self._held[index].positions < wanted:
                self._replace(index, self._page(base, wanted), kept)

    def fork(self, position: int) -> PagedCache:
        """Another cache that begins with the first `position` positions of this one. Raises: LocalProtocolError."""
        if not 0 <= position <= self.length:
            raise LocalProtocolError(f"a fork at {position} of a cache of {self.length} positions")
        other = PagedCache(self.span, len(self.table), self._row_bytes, self._most, self._pool)
        other._hold(self._held[: -(-position // PAGE_POSITIONS)])
        other.length = position
        return other

    def pages(self, start: int, stop: int) -> list[Page]:
        """The pages of start:stop, `start` a multiple of PAGE_POSITIONS, `stop` at most `length`; to be released one
        by one. None at all, if the cache is of no blocks. Raises: LocalProtocolError.
        """
        if start % PAGE_POSITIONS or not 0 <= start <= stop <= self.length:
            raise LocalProtocolError(f"{start}:{stop} are no pages of a cache of {self.length} positions")
        taken = self._held[start // PAGE_POSITIONS : -(-stop // PAGE_POSITIONS)]
        return [page.hold() for page in taken]

    def adopt(self, pages: Sequence[KvPage], length: int) -> None:
        """Begin with `length` positions of another cache for the same blocks, on these pages, of which it may not
        need all; who gave them still has to release them.

        Raises: LocalProtocolError, if this cache is not empty, or the pages are not for it.
        """
        own = [page for page in pages if isinstance(page, Page)]
        blocks, count = len(self.table), -(-length // PAGE_POSITIONS)
        fit = all(page.memory.shape == (blocks, page.positions * self._row_bytes) for page in own)
        if self._held or not fit or len(own) < len(pages):
            raise LocalProtocolError("only an empty cache adopts pages, and only those for its own blocks")
        if blocks:
            needed, last = own[:count], length - PAGE_POSITIONS * (count - 1)
            sizes = [page.positions for page in needed]
            if (
                len(needed) < count
                or any(size < PAGE_POSITIONS for size in sizes[:-1])
                or sizes[-1:] < [last]
            ):
                raise LocalProtocolError(f"{length} positions are not on these pages")
            self._hold(needed)
        self.length = length

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._drop(0)
        self.length = 0

    def _page(self, base: int, wanted: int) -> Page:
        """For `wanted` positions from `base` on."""
        least = wanted if base == 0 else max(wanted, min(PAGE_POSITIONS, self._most - base))
        positions = next(size for size in SIZES if size >= least)
        return self._pool.take(len(self.table), positions, self._row_bytes)

    def _add(self, page: Page) -> None:
        self._held.append(page)
        column = self._addresses(page)[:, None]
        self.table = np.ascontiguousarray(np.concatenate((self.table, column), axis=1))

    def _replace(self, index: int, page: Page, kept: int) -> None:
        """Put a page of our own in the place of another, with the first `kept` positions of that."""
        old = self._held[index]
        size = -(-kept // TILE) * TILE * self._row_bytes  # sixteen positions lie together
        page.memory[:, :size] = old.memory[:, :size]
        self._held[index] = page
        self.table[:, index] = self._addresses(page)
        old.release()

    def _hold(self, pages: Sequence[Page]) -> None:
        """Begin with pages that others hold as well."""
        self._held = [page.hold() for page in pages]
        if pages:
            self.table = np.stack([self._addresses(page) for page in pages], axis=1)

    def _drop(self, count: int) -> None:
        """Keep the first `count` pages."""
        if count < len(self._held):
            for page in self._held[count:]:
                page.release()
            del self._held[count:]
            self.table = np.ascontiguousarray(self.table[:, :count])

    def _addresses(self, page: Page) -> NDArray[np.uint64]:
        """Where each block's part of a page lies: [blocks]."""
        size = page.positions * self._row_bytes
        return address(page.memory) + size * np.arange(len(self.table), dtype=np.uint64)
