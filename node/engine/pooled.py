"""Keys and values of a batch of rows in a pool: all of fixed shape, at fixed addresses, so that it can be recorded.

Tables say which pages are whose, up to so many; a mask hides what lies beyond a session's last row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from node.engine.pool import PAGE, Pool
from node.engine.rows import Gathered


class PoolCaches:
    """In place of one session's caches: those of a batch in a pool, for one forward.

    tables [rows, pages] and lengths [rows], int64 on the device, say where the sessions' rows are.
    """

    is_compileable = False

    def __init__(
        self,
        pool: Pool,
        windows: Mapping[int, int],
        tables: torch.Tensor,
        lengths: torch.Tensor,
        attention: str,
    ) -> None:
        self._pool = pool
        self._windows = windows
        self._lengths = lengths
        self._attention = attention
        rows, pages = tables.shape
        every = torch.arange(pages * PAGE, device=tables.device)
        places = (tables[:, :, None] * PAGE + every[:PAGE]).view(rows, -1)
        self._new = places.gather(1, lengths[:, None])[:, 0]
        self._seen = places.flatten()
        self._behind = lengths[:, None] - every  # 0 for the row itself, negative for what comes after it
        self._masks: dict[int | None, torch.Tensor] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Gathered, Gathered]:
        """Put row b of keys and values [rows, heads, 1, width] behind session b's, and look all of them up."""
        rows = len(keys)
        mask = self._mask(self._windows.get(layer_idx), keys.dtype)
        found = []
        layer = self._pool.layer(layer_idx, keys, values)
        for store, states in zip(layer, (keys, values), strict=True):
            store.index_copy_(0, self._new, states[:, :, 0])
            seen = store.index_select(0, self._seen)
            found.append(seen.view(rows, -1, *seen.shape[1:]).transpose(1, 2))
        return Gathered(found[0], mask, self._attention), Gathered(found[1], mask, self._attention)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """To be added to scores, [rows, 1, 1, positions]: the least number where a row may not look."""
        if window not in self._masks:
            hidden = self._behind < 0
            if window is not None:
                hidden |= self._behind >= window
            zero = torch.zeros((), dtype=dtype, device=hidden.device)
            self._masks[window] = zero.masked_fill(hidden, torch.finfo(dtype).min)[:, None, None]
        return self._masks[window]

    def positions(self, tokens: int) -> torch.Tensor:
        """Where the next row of each session stands, [rows, 1]."""
        assert tokens == 1
        return self._lengths[:, None]

    def begin(self) -> None:
        """See `LayerCaches.begin`; whoever replays does it."""

    def advance(self, tokens: int) -> None:
        """See `LayerCaches.advance`; whoever replays does it."""
