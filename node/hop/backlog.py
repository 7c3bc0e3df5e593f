"""The steps of a session between their arrival and their sending on, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from node.compute.interfaces import StepResult
from node.compute.loop import Given, Outcome
from node.hop.reuse import Filled, Taken
from node.hop.seats import Seat
from node.hop.steps import Shape, join
from protocol import limits
from protocol.candidates import Want
from protocol.messages import Error, Step


@dataclass(frozen=True, slots=True)
class Load:
    """What one step holds."""

    rows: int = 0
    answer_bytes: int = 0


@dataclass(slots=True)
class Pending:
    """A step that waits, is computed, or has been and is to be sent on; `want` is what the engine is asked for.

    The step's inputs are the rows to be computed.
    """

    step: Step
    from_client: bool
    want: Want
    load: Load
    arrived: float
    tokens: int  # positions of all lanes after it
    taken: Taken | None = None  # the rows before its inputs, which are not computed
    filled: list[Filled] = field(default_factory=list)  # what was filled before it and may be left to others
    queue_ms: float = -1.0  # not known yet
    compute_ms: float = 0.0
    alone: bool = True  # in all batches so far
    parts: list[StepResult] = field(default_factory=list)
    failure: Error | None = None

    @property
    def position(self) -> int:
        """Of the first row that is computed."""
        return self.step.position + (0 if self.taken is None else self.taken.count)

    @property
    def result(self) -> StepResult:
        """What it gives, all rows of it, once it is computed."""
        before = None if self.taken is None else self.taken.rows
        return join(self.parts if before is None else [before, *self.parts])

    def add(self, outcome: Outcome[Given], *, alone: bool) -> None:
        """A piece of it has run, or failed."""
        if self.queue_ms < 0:
            self.queue_ms = (outcome.started - self.arrived) * 1e3
        self.compute_ms += (outcome.ended - outcome.started) * 1e3
        self.alone = self.alone and alone
        self.parts.extend(outcome.result or ())


class Backlog:
    """Keeps them within what the session has reserved: who brings more waits. Tells the seat whether it is used."""

    def __init__(self, shape: Shape, seat: Seat) -> None:
        self.acks = 0  # that wait to be told with others
        self._seat = seat
        self._rows_most = shape.waiting_rows
        self._answer_bytes_most = shape.answer_bytes
        self._uncomputed: dict[int, Pending] = {}
        self._steps = 0
        self._rows = 0
        self._answer_bytes = 0
        self._less = trio.Event()

    async def wait_room(self, more: Load) -> None:
        """Return once `more` may be held; a single step always may."""
        while not self._has_room(more):
            if self._less.is_set():
                self._less = trio.Event()
            await self._less.wait()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be computed."""
        return not self._uncomputed

    def add(self, pending: Pending) -> None:
        """A step has come that is to be computed."""
        self.hold(pending.load)
        self._uncomputed[pending.step.number] = pending
        self._seat.waiting += 1

    def find(self, number: int) -> Pending | None:
        """Step `number`, if it is not computed yet."""
        return self._uncomputed.get(number)

    def computed(self, pending: Pending) -> None:
        """It is computed, or never will be, and still held."""
        del self._uncomputed[pending.step.number]
        self._seat.waiting -= 1
        self._seat.used_at = trio.current_time()

    def hold(self, load: Load) -> None:
        """Something has come that is held until it is let go."""
        self._steps += 1
        self._rows += load.rows
        self._answer_bytes += load.answer_bytes

    def let_go(self, load: Load) -> None:
        """It has gone on."""
        self._steps -= 1
        self._rows -= load.rows
        self._answer_bytes -= load.answer_bytes
        self._less.set()

    def acks_told(self) -> None:
        """No ack waits any more."""
        self.acks = 0
        self._less.set()

    def forget(self) -> None:
        """The session is over: nothing is computed any more. The seat stays in use until it is given back."""
        self._uncomputed.clear()

    def _has_room(self, more: Load) -> bool:
        if self.acks >= limits.STEPS_IN_FLIGHT:
            return False
        return self._steps == 0 or (
            self._steps < limits.STEPS_IN_FLIGHT
            and self._rows + more.rows <= self._rows_most
            and self._answer_bytes + more.answer_bytes <= self._answer_bytes_most
        )
