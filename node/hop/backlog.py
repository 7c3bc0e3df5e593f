"""What the steps of a session hold between their arrival and their sending on."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from node.hop.steps import Shape
from protocol import limits


@dataclass(frozen=True, slots=True)
class Held:
    """What one step holds."""

    rows: int = 0
    answer_bytes: int = 0


class Backlog:
    """Keeps it within what the session has reserved: who brings more waits."""

    def __init__(self, shape: Shape) -> None:
        self.acks = 0  # that wait to be told with others
        self._rows_most = shape.waiting_rows
        self._answer_bytes_most = shape.answer_bytes
        self._steps = 0
        self._rows = 0
        self._answer_bytes = 0
        self._less = trio.Event()

    async def wait_room(self, more: Held) -> None:
        """Return once `more` may be held; a single step always may."""
        while not self._has_room(more):
            if self._less.is_set():
                self._less = trio.Event()
            await self._less.wait()

    def hold(self, more: Held) -> None:
        """A step has come."""
        self._steps += 1
        self._rows += more.rows
        self._answer_bytes += more.answer_bytes

    def let_go(self, held: Held) -> None:
        """It has gone on."""
        self._steps -= 1
        self._rows -= held.rows
        self._answer_bytes -= held.answer_bytes
        self._less.set()

    def acks_told(self) -> None:
        """No ack waits any more."""
        self.acks = 0
        self._less.set()

    def _has_room(self, more: Held) -> bool:
        if self.acks >= limits.STEPS_IN_FLIGHT:
            return False
        return self._steps == 0 or (
            self._steps < limits.STEPS_IN_FLIGHT
            and self._rows + more.rows <= self._rows_most
            and self._answer_bytes + more.answer_bytes <= self._answer_bytes_most
        )
