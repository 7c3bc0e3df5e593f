"""Room for sessions that grow: waited for in line, and not for long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from node.compute.kv import room_for
from node.hop.admission import Admission
from node.hop.backlog import Pending
from node.hop.seats import Seat
from protocol.errors import CacheFull

# Room also comes by time alone: as others fall idle.
LOOK_S: Final = 0.25


class Growth:
    """Of all sessions of a node.

    `give_way` is called with seats that are lost to one that grows, `settled` when a seat holds more or nothing.
    """

    def __init__(
        self, budget: Admission, give_way: Callable[[Seat], None], settled: Callable[[], None]
    ) -> None:
        self._budget = budget
        self._give_way = give_way
        self._settled = settled
        self._changed = trio.Event()

    def grow(self, seat: Seat, tokens: int) -> None:
        """Have a seat hold so many tokens. Raises: CacheFull; then `wait`."""
        before = seat.tokens
        for other in self._budget.grow(seat, tokens, trio.current_time()):
            self._give_way(other)
        if seat.tokens != before:
            self._settled()

    async def wait(self, seat: Seat, tokens: int) -> None:
        """Return when a seat holds so many tokens. Raises: CacheFull, when it has to go."""
        try:
            while True:
                try:
                    self.grow(seat, tokens)
                    return
                except CacheFull:
                    if self._budget.must_yield(seat, trio.current_time()):
                        raise
                changed = self._changed
                with trio.move_on_after(LOOK_S):
                    await changed.wait()
        finally:
            self._budget.leave_line(seat)
            self._wake()

    def release(self, seat: Seat) -> None:
        """Give a seat back."""
        self._budget.release(seat)
        self._settled()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Unpaged:
    """The steps of one session from the first on that has no room for its tokens yet, in order."""

    def __init__(self, growth: Growth, seat: Seat) -> None:
        self._growth = growth
        self._seat = seat
        self._steps: deque[Pending] = deque()
        self._some = trio.Event()

    def holds(self, pending: Pending) -> bool:
        """Take a step if it has to wait: for those before it, or for room."""
        if not self._steps:
            if pending.tokens <= self._seat.tokens:
                return False
            try:
                self._growth.grow(self._seat, self._tokens(pending))
                return False
            except CacheFull:
                self._some.set()
        self._steps.append(pending)
        return True

    async def run(self, go_on: Callable[[Pending], None]) -> None:
        """Call `go_on` with each once there is room, for ever. Raises: CacheFull, when the session has to go."""
        while True:
            await self._some.wait()
            while self._steps:
                await self._growth.wait(self._seat, self._tokens(self._steps[0]))
                go_on(self._steps.popleft())
            self._some = trio.Event()

    def forget(self) -> None:
        """The session is over."""
        self._steps.clear()

    def _tokens(self, pending: Pending) -> int:
        return room_for(pending.tokens, self._seat.most)
