"""A line for answers: so many at once, so many that wait; who comes then is told to come again. In the trio loop."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from swarm.http import limits
from swarm.http.errors import ApiError, full, unavailable

# Of an answer, while none has ended yet.
_USUAL_S: Final = 5.0
# How much the newest answer counts in the mean of how long they take.
_NEWEST: Final = 0.2


@dataclass(eq=False, slots=True)
class _Waiter:
    places: int
    called: trio.Event = field(default_factory=trio.Event)


class Line:
    """First come, first served; a request for several answers takes as many places at once."""

    def __init__(self, places: int, waiting: int) -> None:
        self.places = places
        self._free = places
        self._most_waiting = waiting
        self._waiting: deque[_Waiter] = deque()
        self._mean_s = _USUAL_S
        self.on_place: Callable[[float], object] = _ignore  # told how long each has waited, in seconds

    @property
    def active(self) -> int:
        """Places taken."""
        return self.places - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def retry_after_s(self) -> float:
        """When a place may be free for who comes last."""
        return min(60.0, max(1.0, self._mean_s * (len(self._waiting) + 1) / self.places))

    @asynccontextmanager
    async def place(self, places: int = 1) -> AsyncIterator[None]:
        """Hold so many places, as soon as it is one's turn. Raises: ApiError, 429 or 503."""
        came = trio.current_time()
        if self._waiting or self._free < places:
            await self._wait(_Waiter(places))
        else:
            self._free -= places
        began = trio.current_time()
        self.on_place(began - came)
        try:
            yield
        finally:
            self._mean_s += _NEWEST * (trio.current_time() - began - self._mean_s)
            self._give_back(places)

    async def _wait(self, waiter: _Waiter) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise self._full()
        self._waiting.append(waiter)
        try:
            with trio.move_on_after(limits.QUEUED_S):
                await waiter.called.wait()
        except trio.Cancelled:
            self._leave(waiter)
            raise
        if not waiter.called.is_set():
            self._leave(waiter)
            raise unavailable("no place became free in time", "queue_timeout", self.retry_after_s)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.called.is_set():  # just now
            self._give_back(waiter.places)
        else:
            self._waiting.remove(waiter)
            self._call_next()  # it may have stood before some that need less

    def _full(self) -> ApiError:
        return full(
            f"{self.active} answers are under way and {self.waiting} requests wait; ask again later",
            self.retry_after_s,
        )

    def _give_back(self, places: int) -> None:
        self._free += places
        self._call_next()

    def _call_next(self) -> None:
        while self._waiting and self._waiting[0].places <= self._free:
            waiter = self._waiting.popleft()
            self._free -= waiter.places
            waiter.called.set()


def _ignore(_: float) -> None:
    pass
