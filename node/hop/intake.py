"""Steps as they come: checked, numbered, and with what need not be computed taken out of them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

import trio

from node.hop.backlog import Backlog, Load, Pending
from node.hop.life import Event, Life
from node.hop.reuse import Reuse, named_step
from node.hop.steps import BadWant, Gate, Shape, as_fill, effective_want, explain
from protocol.errors import Malformed
from protocol.messages import Instead, Known, Step, Unknown, fork_cost
from protocol.talk.channel import Channel


@dataclass(frozen=True, slots=True)
class Repeated:
    """A step that came before."""

    number: int


class Intake:
    """Of one session, which it ends by `life` where a step cannot be."""

    def __init__(
        self,
        shape: Shape,
        life: Life,
        backlog: Backlog,
        reuse: Reuse,
        forks_wait_s: Callable[[float, int], float],
    ) -> None:
        """forks_wait_s: takes the time and what lanes that begin cost; how long to wait until that is paid for."""
        self._shape = shape
        self._life = life
        self._backlog = backlog
        self._reuse = reuse
        self._forks_wait_s = forks_wait_s
        self._gate = Gate(shape)

    @property
    def received(self) -> int:
        """Steps received, the highest number plus one."""
        return self._gate.received

    @property
    def lanes(self) -> int:
        """Sequences that are held side by side."""
        return self._gate.lanes

    def begin_at(self, number: int, length: int) -> None:
        """The first `length` tokens are there, by steps below `number`."""
        self._gate.begin_at(number, length)

    async def take(self, step: Step, *, from_client: bool) -> Pending | Repeated | None:
        """What there is to do for a step, None if nothing; waits while too much is held."""
        arrived = time.perf_counter()
        try:
            load = Load(step.inputs.rows, self._shape.held_bytes(step))
            self._shape.check_want(step, load.answer_bytes)
            if step.lanes:
                await self._pay(step)
            await self._backlog.wait_room(load)
            marks = () if step.lanes else await self._reuse.read(step)
            if not self._life.happens(Event.STEP):
                return None
            if not self._gate.admit(step):
                return Repeated(step.number)
        except Malformed as error:
            self._life.fail(explain(error, from_client=from_client))
            return None
        taken = None if step.lanes else self._reuse.take(step, marks)
        if taken is not None:
            step = replace(step, inputs=step.inputs.row_slice(taken.count, step.inputs.rows))
        want = effective_want(step, has_head=self._shape.has_head)
        return Pending(as_fill(step), from_client, want, load, arrived, self._gate.tokens, taken)

    async def _pay(self, step: Step) -> None:
        """Wait until its peer may begin so many lanes, of such a length."""
        cost = sum(fork_cost(lane) for lane in step.lanes)
        if cost:
            await trio.sleep(self._forks_wait_s(trio.current_time(), cost))

    async def take_all(self, channel: Channel) -> AsyncGenerator[Pending, None]:
        """What there is to do for the steps of the hop before, until its stream ends.

        Raises: Lost, Malformed or TooLarge, of that stream.
        """
        lacking: int | None = None  # the step from which on all comes again
        while isinstance(message := await channel.receive(), Step | Known | Instead):
            pending: Pending | Repeated | Unknown | None = None
            if isinstance(message, Instead):
                if message.number != lacking:
                    raise Malformed("replaces what nobody lacks")
                lacking = None
            elif lacking is not None:
                await trio.lowlevel.checkpoint()
            elif isinstance(message, Step):
                pending = await self.take(message, from_client=False)
            else:
                pending = await self._take_known(message)
            if isinstance(pending, Pending):
                yield pending
            elif isinstance(pending, Unknown):
                lacking = pending.number
                await channel.send(pending)

    async def _take_known(self, known: Known) -> Pending | Unknown | None:
        """What there is to do for a step whose first rows are named, None if nothing.

        Raises: Malformed, if there can be no such step: the fault of who brought it.
        """
        arrived = time.perf_counter()
        step = named_step(known, self._shape)
        self._shape.check(step, known.rows)
        load = Load(known.rows + step.inputs.rows, self._shape.held_bytes(step))
        try:
            self._shape.check_want(step, load.answer_bytes)
        except BadWant as error:
            self._life.fail(explain(error, from_client=False))
            return None
        await self._backlog.wait_room(load)
        marks = await self._reuse.read_known(known)
        if known.number < self._gate.received or not self._life.happens(Event.STEP):
            return None
        taken = self._reuse.take_known(known, marks)
        if taken is None:
            return Unknown(known.number)
        self._gate.admit(step, known.rows)
        want = effective_want(step, has_head=self._shape.has_head)
        return Pending(step, False, want, load, arrived, self._gate.tokens, taken)
