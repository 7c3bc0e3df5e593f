"""What one task handles in order, and others may handle in its place while it has nothing to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Outbox(Generic[T]):
    """Whoever finds it idle may handle a thing at once, and need not wake anybody; else it posts it."""

    def __init__(self) -> None:
        self._waiting: deque[T] = deque()
        self._posted = trio.Event()
        self._busy = False
        self._closed = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is being handled; never, once it is closed."""
        return not (self._busy or self._waiting or self._closed)

    def post(self, item: T) -> None:
        """Have it handled after all that was posted before; once it is closed, never."""
        if not self._closed:
            self._waiting.append(item)
            self._posted.set()

    def close(self) -> None:
        """Forget what waits; `run` returns."""
        self._closed = True
        self._waiting.clear()
        self._posted.set()

    async def run(self, handle: Callable[[T], Awaitable[None]]) -> None:
        """Handle what is posted until it is closed. Raises: what `handle` raises."""
        while not self._closed:
            if not self._waiting:
                self._posted = trio.Event()
                await self._posted.wait()
                continue
            self._busy = True
            try:
                await handle(self._waiting.popleft())
            finally:
                self._busy = False
