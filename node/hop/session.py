"""One session on one hop: its steps, its cache, its journal, and who hears of what.

Four tasks at most: one reads the client, one reads the hop before (in that stream's handler), one sends what was
computed, in the order of computing, and one what the client may hear later. A step's way: `_accept` (checked,
numbered, queued), `compute` (in the worker thread), `computed` (back in the event loop), `_emit` (journal, next hop
or client, Ack).
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field

import trio

from node.compute.casting import cast_hidden
from node.compute.interfaces import Engine, KvCache
from node.compute.loop import EngineLoop, Outcome
from node.compute.meter import Meter, StepTime
from node.compute.scheduler import Owner, Piece
from node.hop.admission import Admission, Seat
from node.hop.backlog import Backlog, Held
from node.hop.neighbours import Neighbours
from node.hop.sender import Sender
from node.hop.steps import (
    BadWant,
    Computed,
    Gate,
    Result,
    Shape,
    as_fill,
    check_result,
    effective_want,
    join,
    piece_want,
)
from protocol import limits
from protocol.candidates import Want
from protocol.errors import (
    LocalProtocolError,
    Lost,
    Malformed,
    RemoteProtocolError,
    SwarmError,
    UnsupportedModel,
)
from protocol.messages import (
    Ack,
    Close,
    Error,
    Message,
    Open,
    Ping,
    Pong,
    Relink,
    Step,
)
from protocol.talk.channel import Channel
from protocol.transport.allowance import Allowance
from protocol.transport.base import Stream

logger = logging.getLogger(__name__)

_keys = itertools.count()


@dataclass(frozen=True, slots=True)
class Machine:
    """What all sessions of a node share."""

    engine: Engine
    loop: EngineLoop
    neighbours: Neighbours
    budget: Admission
    meter: Meter


class _BadOutput(SwarmError):
    """The engine returned numbers that nobody can go on with."""


_REPEATED = Held()


@dataclass(slots=True)
class _Pending:
    """A step between its arrival and its sending on."""

    step: Step
    from_client: bool
    want: Want
    arrived: float
    held: Held
    queue_ms: float = -1.0
    compute_ms: float = 0.0
    parts: list[Result] = field(default_factory=list)
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Again:
    """A step that came again after it was computed."""

    number: int


class HopSession:
    """A session as its hop keeps it, from Opened to the end of the client's stream.

    What it may hold is its seat's; the seat is given back when the last of it is gone, or before, to who needs it.
    """

    def __init__(self, machine: Machine, client: Channel, opened: Open, shape: Shape, seat: Seat) -> None:
        self.key = next(_keys)
        self.id = opened.session
        self.peer = seat.peer
        self.owner = Owner(seat.origin, seat.peer)
        self.shape = shape
        self.failure: Error | None = None
        self._machine = machine
        self._client = client
        self._seat = seat
        self._first_next = opened.next
        self._gate = Gate(self.shape)
        self._computed = 0  # the highest number plus one
        bridged = opened.bridged and opened.next is None
        self._sender = Sender(shape, self._open_stream, self._tell, self._tell_later, bridged=bridged)
        self._relinks = Allowance(limits.RELINKS_PER_S, limits.RELINKS_BURST)
        self._pending: dict[int, _Pending] = {}
        self._backlog = Backlog(shape)
        self._cache: KvCache | None = None
        self._later: list[Message] = []
        self._later_waits = trio.Event()
        self._relink_taken = trio.Event()
        self._relink_taken.set()
        self._outbox, self._to_emit = trio.open_memory_channel[_Pending | _Again | Relink](float("inf"))
        self._scope = trio.CancelScope()
        self._attached = trio.CancelScope()
        self._over = False
        self._freed = False

    async def run(self) -> None:
        """Serve the session until the client ends it or it fails (see `failure`); then free everything."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if self._first_next is not None:
                        self._sender.start_link(nursery, self._first_next)
                    nursery.start_soon(self._emit_all, nursery)
                    nursery.start_soon(self._send_later)
                    await self._read_client()
                    nursery.cancel_scope.cancel()
        finally:
            self.free()

    def fail(self, code: str, message: str, *, elsewhere: bool) -> None:
        """End the session; the first reason given is the one the client is told."""
        if not self._over:
            self.failure = Error(code, message, elsewhere)
        self._over = True
        self._scope.cancel()

    async def read_attached(self, channel: Channel) -> None:
        """Take steps from the hop before, until its stream ends, a newer one comes, or the session ends.

        Raises: Lost, Malformed or TooLarge, of that stream; the session stays.
        """
        self._attached.cancel()
        self._attached = scope = trio.CancelScope()
        if self._over:
            return
        with scope:
            while isinstance(message := await channel.receive(), Step):
                await self._accept(message, from_client=False)

    # --- from the client

    async def _read_client(self) -> None:
        try:
            while True:
                with trio.move_on_after(limits.SESSION_IDLE_S) as waiting:
                    message = await self._client.receive()
                if waiting.cancelled_caught:
                    self.fail("idle", f"nothing was heard for {limits.SESSION_IDLE_S:g} s", elsewhere=False)
                    return
                if message is None or isinstance(message, Close | Error):
                    self._over = True
                    self.failure = None  # whatever failed meanwhile, nobody listens any more
                    return
                await self._take(message)
        except RemoteProtocolError as error:
            self.fail("malformed", str(error), elsewhere=False)
        except Lost:
            self._over = True

    async def _take(self, message: Message) -> None:
        if isinstance(message, Step):
            await self._accept(message, from_client=True)
        elif isinstance(message, Ping):
            await self._tell(Pong(message.nonce, self._gate.received, self._computed))
        elif isinstance(message, Relink):
            await self._take_relink(message)

    async def _take_relink(self, relink: Relink) -> None:
        if self.shape.has_head and relink.next is not None:
            raise Malformed("there is no hop after the head")
        await self._relink_taken.wait()  # one at a time: what waits is bounded
        await trio.sleep(self._relinks.wait_s(self.peer, trio.current_time(), 1))
        self._relink_taken = trio.Event()
        self._sender.drop_link()  # at once: the sender may be waiting for it
        self._outbox.send_nowait(relink)

    async def _accept(self, step: Step, *, from_client: bool) -> None:
        """Check, number and queue a step; waits while too much is held.

        A step that came before is answered again if the client itself repeats it. From the hop before it comes again
        only where two have sent it, and then it was answered.
        """
        arrived = time.perf_counter()
        try:
            self.shape.check_want(step)
            held = Held(step.inputs.rows, self.shape.held_bytes(step))
            await self._backlog.wait_room(held)
            if self._over:
                return  # it ended just as the step came: its cache is gone
            fresh = self._gate.admit(step)
        except BadWant as error:
            self._fail_step(str(error), from_client=True)  # whoever brought it: a want is the client's own
            return
        except Malformed as error:
            self._fail_step(str(error), from_client=from_client)
            return
        if fresh:
            want = effective_want(step, has_head=self.shape.has_head)
            self._pending[step.number] = _Pending(as_fill(step), from_client, want, arrived, held)
            self._backlog.hold(held)
            self._seat.waiting += 1
            self._machine.loop.submit(self, step.number, step.inputs.rows)
        elif from_client and step.number < self._sender.emitted:
            self._backlog.hold(_REPEATED)
            self._outbox.send_nowait(_Again(step.number))

    async def _open_stream(self, peer: str) -> Stream:
        return await self._machine.neighbours.open_stream(peer, self.owner)

    def _fail_step(self, message: str, *, from_client: bool) -> None:
        self.fail("bad_step" if from_client else "bad_hidden", message, elsewhere=not from_client)

    # --- computing

    def compute(self, piece: Piece) -> None:
        """Run a piece of a step, in the worker thread. The event loop leaves the step alone meanwhile."""
        pending, engine = self._pending.get(piece.number), self._machine.engine
        if pending is None:
            return  # the session ended just before
        if self._cache is None:
            self._cache = engine.new_cache(self.shape.span, self.shape.max_tokens)
        step = pending.step
        inputs = step.inputs
        if piece.stop - piece.start < inputs.rows:
            inputs = inputs.row_slice(piece.start, piece.stop)
        if not self.shape.takes_tokens:
            inputs = cast_hidden(inputs, engine.dtype)
        want = piece_want(pending.want, last=piece.last)
        result = engine.step(self._cache, step.position + piece.start, inputs, want)
        try:
            check_result(result)
        except Malformed as error:
            raise _BadOutput(str(error)) from error
        pending.parts.append(result)

    def computed(self, piece: Piece, outcome: Outcome) -> None:
        """A piece has run; after the last one the step goes to the sender."""
        if self._over:
            return
        pending = self._pending[piece.number]
        if pending.queue_ms < 0:
            pending.queue_ms = (outcome.started - pending.arrived) * 1e3
        pending.compute_ms += (outcome.ended - outcome.started) * 1e3
        pending.error = outcome.error
        if outcome.error is not None:
            if not isinstance(outcome.error, Malformed | _BadOutput | UnsupportedModel):
                logger.error("the engine failed in a session of %s", self.peer, exc_info=outcome.error)
            self._machine.loop.drop(self)
        elif not piece.last:
            return
        else:
            self._computed = piece.number + 1
            rows, head = pending.step.inputs.rows, pending.want.kind == "candidates"
            taken = StepTime(rows, self.shape.blocks, head, pending.queue_ms, pending.compute_ms)
            self._machine.meter.observe(taken, outcome.ended)
        del self._pending[piece.number]
        self._seat.waiting -= 1
        self._seat.used_at = trio.current_time()
        self._outbox.send_nowait(pending)

    # --- sending on

    async def _emit_all(self, nursery: trio.Nursery) -> None:
        try:
            async for item in self._to_emit:
                if isinstance(item, Relink):
                    self._relink_taken.set()
                    await self._sender.relink(nursery, item)
                elif isinstance(item, _Again):
                    await self._sender.emit_again(item.number)
                    await self._tell(Ack(item.number, 0.0, 0.0))
                    self._backlog.let_go(_REPEATED)
                elif item.error is not None:
                    self._explain(item.error, from_client=item.from_client)
                else:
                    await self._emit(item)
        except Malformed as error:
            self.fail("malformed", str(error), elsewhere=False)

    async def _emit(self, pending: _Pending) -> None:
        step = pending.step
        await self._sender.emit(
            Computed(step.number, step.position, step.want, step.fill_until, join(pending.parts)),
            Ack(step.number, max(0.0, pending.queue_ms), pending.compute_ms),
        )
        self._backlog.let_go(pending.held)

    def _explain(self, error: Exception, *, from_client: bool) -> None:
        if isinstance(error, Malformed):
            self._fail_step(str(error), from_client=from_client)
        elif isinstance(error, _BadOutput):
            self.fail("bad_output", str(error), elsewhere=True)
        elif isinstance(error, UnsupportedModel):
            self.fail("unsupported", str(error), elsewhere=False)
        else:
            self.fail("engine", f"the engine failed: {type(error).__name__}", elsewhere=True)

    def _tell_later(self, *messages: Message) -> None:
        self._later += messages
        self._backlog.acks = len(self._later)
        if self._later:
            self._later_waits.set()

    async def _send_later(self) -> None:
        while True:
            await self._later_waits.wait()
            await trio.sleep(limits.ACK_DELAY_S)
            messages, self._later = self._later, []
            self._later_waits = trio.Event()
            self._backlog.acks_told()
            await self._tell(*messages)

    async def _tell(self, *messages: Message) -> None:
        """Send to the client. One that is gone, or takes nothing for long, ends the session."""
        try:
            with trio.move_on_after(limits.TAKE_WITHIN_S) as taking:
                await self._client.send(*messages)
            if taking.cancelled_caught:
                self.fail("unread", f"nothing was taken for {limits.TAKE_WITHIN_S:g} s", elsewhere=False)
                await trio.lowlevel.checkpoint()
        except Lost:
            self._over = True
            self._scope.cancel()
            await trio.lowlevel.checkpoint()
        except LocalProtocolError:
            if not self._over:  # after its Close, what was on the way to the client is of no use to anybody
                raise

    # --- the end

    def free(self) -> None:
        """Give everything back, whatever still runs. Safe to call twice."""
        if self._freed:
            return
        self._over = self._freed = True
        self._attached.cancel()
        self._machine.loop.drop(self)
        self._outbox.close()
        self._to_emit.close()
        self._pending.clear()
        self._sender.forget()  # it knows us and we know it: nothing would be freed before a collection
        # Closed by the worker, after whatever runs: only then is the memory free for another session.
        self._machine.loop.executor.submit(self._close_cache, self._released)

    def _close_cache(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def _released(self, outcome: Outcome) -> None:
        self._machine.budget.release(self._seat)
        if outcome.error is not None:
            logger.error("a cache could not be closed", exc_info=outcome.error)
