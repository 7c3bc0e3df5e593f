"""From asyncio into the trio loop where the client lives: calls, and streams with a bounded lead.

Both loops go on whatever the other one does: nothing here waits for the other thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio

from swarm.portal import Job, Portal

T = TypeVar("T")

Send = Callable[[T], Awaitable[None]]


class Bridge:
    """The trio side, as asyncio sees it. Its portal outlives everything that is called through it."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """`await function(*args)` in the trio loop; cancelling this cancels that."""
        job = self._portal.start(lambda: function(*args))
        try:
            return await asyncio.wrap_future(job.outcome)
        except asyncio.CancelledError:
            job.cancel_nowait()
            raise

    def stream(self, work: Callable[[Send[T]], Awaitable[None]], ahead: int) -> Stream[T]:
        """What `work` sends in the trio loop, which waits while `ahead` values have not been taken."""
        return Stream(self._portal, work, ahead)


class Stream(Generic[T]):
    """Values from the other loop, for one reader: who does not take them to the end closes it."""

    def __init__(self, portal: Portal, work: Callable[[Send[T]], Awaitable[None]], ahead: int) -> None:
        self._portal = portal
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._values: deque[T] = deque()  # appended to by one thread, taken from by the other
        self._news = asyncio.Event()
        self._told = False  # whether the reader is being woken
        self._room = trio.Event()
        self._job: Job[None] = portal.start(lambda: work(self._send))
        self._job.outcome.add_done_callback(lambda _: self._wake())

    async def take(self) -> list[T]:
        """All values that there are, at least one; none at the end. Raises: what the work raises."""
        while not self._values:
            if self._job.outcome.done():
                if self._values:
                    break
                self._job.outcome.result()
                return []
            self._news.clear()
            self._told = False
            if not self._values and not self._job.outcome.done():
                await self._news.wait()
        taken = [self._values.popleft() for _ in range(len(self._values))]
        with contextlib.suppress(trio.RunFinishedError):
            self._portal.soon(lambda: self._room.set())
        return taken

    def close(self) -> None:
        """End the work where it is, if it is not over; it cleans up by itself."""
        if not self._job.outcome.done():
            self._job.cancel_nowait()

    async def _send(self, value: T) -> None:
        """In the trio loop."""
        while len(self._values) >= self._ahead:
            self._room = trio.Event()
            if len(self._values) >= self._ahead:
                await self._room.wait()
        self._values.append(value)
        if not self._told:
            self._wake()

    def _wake(self) -> None:
        self._told = True
        with contextlib.suppress(RuntimeError):  # the reader's loop is over, and so is the reader
            self._loop.call_soon_threadsafe(self._news.set)
