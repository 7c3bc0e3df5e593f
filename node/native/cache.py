"""A session's keys and values, in pages of 256 positions that it takes as it grows."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from node.native.packed import TILE, address, memory
from protocol.model import Span

PAGE_POSITIONS = 256


class PagedCache:
    """Keys and values for the blocks of `span`; `pages` [blocks, pages] are addresses.

    The memory of a page is touched only as far as it is filled, and the last one of a bounded session is cut short.
    """

    def __init__(self, span: Span, blocks: int, row_bytes: int, max_tokens: int | None = None) -> None:
        """row_bytes: of one position of one block."""
        self.span = span
        self.length = 0
        self.pages: NDArray[np.uint64] = np.zeros((blocks, 0), np.uint64)
        self._row_bytes = row_bytes
        self._most = sys.maxsize if max_tokens is None else max_tokens
        self._room = 0
        self._held: list[NDArray[np.uint8]] = []

    def reserve(self, tokens: int) -> None:
        """Make sure of pages for so many positions."""
        while self._room < tokens:
            left = max(self._most, tokens) - self._room
            positions = min(PAGE_POSITIONS, -(-left // TILE) * TILE)
            blocks, size = len(self.pages), positions * self._row_bytes
            page = memory(blocks * size)
            self._held.append(page)
            starts = address(page) + size * np.arange(blocks, dtype=np.uint64)
            self.pages = np.ascontiguousarray(np.concatenate((self.pages, starts[:, None]), axis=1))
            self._room += positions

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._held.clear()
        self.pages = self.pages[:, :0]
        self._room = self.length = 0
