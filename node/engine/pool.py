"""Keys and values of many sessions at fixed addresses, in pages: what a recorded forward can be pointed at."""

from __future__ import annotations

from typing import Final

import torch

from protocol.errors import CacheFull

# Rows of a page. Small, for a session takes them whole; a table of a long session stays short all the same.
PAGE: Final = 64
# Pages that are no session's: tables end with the one, which holds zeros for ever; rows of a batch that stand for no
# session write into the other.
BLANK: Final = 0
SPARE: Final = 1


class Pool:
    """So many pages in every layer."""

    def __init__(self, pages: int, device: torch.device) -> None:
        self.device = device
        self._free = list(range(pages + SPARE, SPARE, -1))
        self._rows = (pages + SPARE + 1) * PAGE
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def free_pages(self) -> int:
        """Those that no session holds."""
        return len(self._free)

    def take(self) -> int:
        """A page of zeros. Raises: CacheFull."""
        if not self._free:
            raise CacheFull("the cache on the device is full for now")
        page = self._free.pop()
        # What is hidden by a mask is multiplied by zero: an infinite number of who had the page before would not be.
        for store in (store for layer in self._layers.values() for store in layer):
            store[page * PAGE : (page + 1) * PAGE].zero_()
        return page

    def give(self, pages: list[int]) -> None:
        """Pages that nobody holds any more."""
        self._free += pages

    def layer(
        self, index: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a layer's keys and values [rows, heads, width] lie; its first ones say how they look."""
        if index not in self._layers:
            self._layers[index] = self._room_for(keys), self._room_for(values)
        return self._layers[index]

    def held(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same of a layer that has been used; else None."""
        return self._layers.get(index)

    def _room_for(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(self._rows, states.shape[1], states.shape[3])


class Pages:
    """The pages of one session, the same in all layers. Whoever makes it closes it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.held: list[int] = []
        self._last: tuple[int, int, torch.Tensor] | None = None

    def reserve(self, tokens: int) -> None:
        """Make sure of room for so many rows. Raises: CacheFull, which leaves what is there."""
        while len(self.held) * PAGE < tokens:
            self.held.append(self.pool.take())

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Where rows [start, stop) of the session are in each layer, int64 on the device."""
        if self._last is None or self._last[:2] != (start, stop):  # every layer asks for the same
            tables = torch.tensor(self.held[start // PAGE : -(-stop // PAGE)])
            every = (tables[:, None] * PAGE + torch.arange(PAGE)).flatten()
            first = start % PAGE
            self._last = start, stop, every[first : first + stop - start].to(self.pool.device)
        return self._last[2]

    def close(self) -> None:
        """Give the pages back. Safe to call twice."""
        self.pool.give(self.held)
        self.held, self._last = [], None


class PooledRows:
    """Keys and values of one session in one layer; stands where `cache._Buffers` does."""

    def __init__(self, pages: Pages, layer: int) -> None:
        self._pages = pages
        self._layer = layer
        self._row_bytes = 0
        self.held = 0

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, past: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add rows [1, heads, rows, width]; copies of the last `past` before them (None: of all) and of the new."""
        pages, held = self._pages, self.held
        stop = held + keys.shape[2]
        pages.reserve(stop)
        layer = pages.pool.layer(self._layer, keys, values)
        new = pages.rows(held, stop)
        for store, states in zip(layer, (keys, values), strict=True):
            store.index_copy_(0, new, states[0].transpose(0, 1))
        self.held = stop
        self._row_bytes = sum(store[0].nbytes for store in layer)
        seen = pages.rows(0 if past is None else max(held - past, 0), stop)
        found = [store.index_select(0, seen).transpose(0, 1)[None] for store in layer]
        return found[0], found[1]

    def first(self, rows: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Copies of the first `rows` rows; None if there are none."""
        layer = self._pages.pool.held(self._layer)
        if layer is None or not rows:
            return None
        places = self._pages.rows(0, rows)
        keys, values = (store.index_select(0, places).transpose(0, 1)[None] for store in layer)
        return keys, values

    def bytes_per_token(self) -> int:
        """Memory that one row takes."""
        return self._row_bytes
