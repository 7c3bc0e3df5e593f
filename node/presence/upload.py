"""How fast weights go out: one rate for all, turns by origin, and less while sessions are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

# Bytes that go at once: 2 ms of the event loop, in which no token moves.
SLICE_BYTES: Final = 64 * 1024
# While the node computes for sessions, whose tokens take the same link and processors, what is left of the rate, and
# what goes at once: on 100 Mbit/s a token waits behind 0.7 ms of it, and not 5.
BUSY_SHARE: Final = 1 / 16
BUSY_SLICE_BYTES: Final = 8 * 1024
# What was not used of the rate may be made up for within this time.
_BURST_S: Final = 0.05


class Upload:
    """Permission to send, slice by slice. `is_busy` says whether sessions are being computed."""

    def __init__(self, bytes_per_s: float, is_busy: Callable[[], bool] = lambda: False) -> None:
        self._bytes_per_s = bytes_per_s
        self._is_busy = is_busy
        self._paid_until = float("-inf")
        self._line = trio.Lock()  # first come, first served
        self._origins: dict[str, tuple[trio.Lock, int]] = {}  # and of each origin one stands in it at a time

    @property
    def slice_bytes(self) -> int:
        """How much should go at once now."""
        return BUSY_SLICE_BYTES if self._is_busy() else SLICE_BYTES

    async def turn(self, origin: str, size: int) -> None:
        """Wait until somebody at `origin` may be sent `size` bytes more."""
        lock, waiting = self._origins.get(origin, (trio.Lock(), 0))
        self._origins[origin] = lock, waiting + 1
        try:
            async with lock, self._line:
                await self._pay(size)
        finally:
            lock, waiting = self._origins.pop(origin)
            if waiting > 1:
                self._origins[origin] = lock, waiting - 1

    async def _pay(self, size: int) -> None:
        now = trio.current_time()
        rate = self._bytes_per_s * (BUSY_SHARE if self._is_busy() else 1.0)
        self._paid_until = max(self._paid_until, now - _BURST_S) + size / rate
        if self._paid_until > now:
            await trio.sleep(self._paid_until - now)
