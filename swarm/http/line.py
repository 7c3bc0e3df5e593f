"""A line for answers: so many at once, so many that wait; who comes then is told to come again. In the trio loop.

Whoever asks is known by a key or an address. A place goes to whoever has the fewest, and where too many wait, the
last of whoever has the most in line gives way: one who asks for a hundred answers holds up his own.
"""

from __future__ import annotations

from collections import Counter
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
    asker: str
    called: trio.Event = field(default_factory=trio.Event)
    sent_away: bool = False


class Line:
    """First come, first served among those of one asker; a request for several answers takes as many places at once.

    share: the most places that one asker may have
    """

    def __init__(self, places: int, waiting: int, share: int | None = None) -> None:
        self.places = places
        self.share = places if share is None else share
        self._free = places
        self._most_waiting = waiting
        self._waiting: list[_Waiter] = []
        self._held: Counter[str] = Counter()
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
    async def place(self, places: int = 1, asker: str = "") -> AsyncIterator[None]:
        """Hold so many places, as soon as it is one's turn. Raises: ApiError, 429 or 503."""
        came = trio.current_time()
        await self._wait(_Waiter(places, asker))
        began = trio.current_time()
        self.on_place(began - came)
        try:
            yield
        finally:
            self._mean_s += _NEWEST * (trio.current_time() - began - self._mean_s)
            self._give_back(places, asker)

    async def _wait(self, waiter: _Waiter) -> None:
        self._waiting.append(waiter)
        self._call_next()
        if len(self._waiting) > self._most_waiting:
            self._send_away(self._last_of_the_most(waiter.asker))
        try:
            with trio.move_on_after(limits.QUEUED_S):
                await waiter.called.wait()
        except trio.Cancelled:
            self._leave(waiter)
            raise
        if waiter.sent_away:
            raise self._full()
        if not waiter.called.is_set():
            self._leave(waiter)
            raise unavailable("no place became free in time", "queue_timeout", self.retry_after_s)

    def _last_of_the_most(self, newcomer: str) -> _Waiter:
        """The last waiter of whoever has the most; of several with as many, the newcomer's."""
        in_line = Counter(waiter.asker for waiter in self._waiting)
        most = max(in_line, key=lambda asker: (in_line[asker], asker == newcomer))
        return next(waiter for waiter in reversed(self._waiting) if waiter.asker == most)

    def _send_away(self, waiter: _Waiter) -> None:
        self._waiting.remove(waiter)
        waiter.sent_away = True
        waiter.called.set()
        self._call_next()  # it may have stood before some that need less

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.sent_away:
            return
        if waiter.called.is_set():  # just now
            self._give_back(waiter.places, waiter.asker)
        else:
            self._waiting.remove(waiter)
            self._call_next()

    def _full(self) -> ApiError:
        return full(
            f"{self.active} answers are under way and {self.waiting} requests wait; ask again later",
            self.retry_after_s,
        )

    def _give_back(self, places: int, asker: str) -> None:
        self._free += places
        self._held[asker] -= places
        if not self._held[asker]:
            del self._held[asker]
        self._call_next()

    def _call_next(self) -> None:
        while (waiter := self._next()) is not None and waiter.places <= self._free:
            self._waiting.remove(waiter)
            self._free -= waiter.places
            self._held[waiter.asker] += waiter.places
            waiter.called.set()

    def _next(self) -> _Waiter | None:
        """Whose turn it is: the first of each asker stands for it, and who has the fewest places goes first."""
        firsts: dict[str, _Waiter] = {}
        for waiter in self._waiting:
            firsts.setdefault(waiter.asker, waiter)
        able = [each for each in firsts.values() if self._held[each.asker] + each.places <= self.share]
        return min(able, key=lambda each: self._held[each.asker], default=None)


def _ignore(_: float) -> None:
    pass
