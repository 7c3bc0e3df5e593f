"""One session on one hop: the order of its steps, from their arrival to their sending on.

Theory of operation
===================

A step has a *number* and a *position*. The number says when it was sent: a hop computes each once, in the order of
arrival. The position says where its rows stand: cache and journal are cut to it before the rows are added. All going
back, trying again and filling follows from these two; nothing else undoes anything.

A step passes five places, each in order. `Intake` checks it, waits for room in the backlog (and with it the stream
that brought it), and admits its number. Where the seat has no room for its tokens it stays in `_unpaged` until there
is, but not for long: then the session ends, and its client is told when to come again. The scheduler has it computed
in one or more pieces, each in a batch with those of other sessions: `prepare` in the engine's thread, `take` in the
event loop. `Emitter` has it go on, at once or by a single task in its outbox's order: into the journal, then to the
next hop or the client, then the Ack.

*Again.* Of a step that was emitted before and that the client itself repeats, the result is found in the journal (or,
with the head, among the kept outputs) and sent again, if results go to the client, and it is acknowledged again. If
it is still on its way here, its answer is too. The hop before repeats a step only where two have sent it: that one is
not answered, or two hops that feed each other would never end.

*Reuse.* What others computed that began alike is not computed again (`reuse`): of a step only the rows after those
are queued, and one of which nothing is left goes on at once. The hop before may name such rows in place of sending
them; where we do not know them we say so, and pass over all that comes until it comes again with all rows.

*Fills.* A step with `fill_until` wants nothing, whatever it says. It is computed and kept in the journal like any
other, but it is no answer: it goes to the next hop, or to the client as a bridge, if our span ends before that stage,
and else nowhere. Nobody waits for what steps up to the last fill gave: of those nothing but the Ack comes again.

*Relinks.* As soon as a Relink is read the link is dropped, since the sender may be waiting for it; the turn itself
takes its place in the outbox, so that it lies between two steps and never inside one. What was computed before it is
in the journal by then, whether the link took it or not. The journal is replayed: steps before `live_from` as fills,
those from there on as they were, so that an answer that is still owed comes from the new hop. Where there is none
the client gets what those gave or, as a bridge, the whole journal. A relink may come while this hop is itself being
filled: what it computes later under a number before `live_from` belongs to the journal that the relink asked for, and
goes where that went in the same way. While a link is down steps are computed, kept and acknowledged as ever.

*Forks.* A session may begin with what another of the same client has at a position, as all steps below a number left
it: the journal as it stands once these are sent on, the cache when its turn comes among what the thread computes.
Where a later step has gone back over the position by then, there is no fork. Numbers go on from that one.

*Lanes.* A session may hold several sequences side by side: a step then has rows for some of them, begins and ends
others, and is one step all the same, in every place here. `Gate` says which are there, `lanes` has their caches, the
journal their paths. Reuse and forks of sessions know lane 0 only.

*The end.* `life` says what still counts and whether the client is to hear why. Everything is given back in `free`,
but for the cache and the seat: the thread that computes may be at it, and closes it when it is through.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import trio

from node.compute.interfaces import Call, Engine
from node.compute.loop import EngineLoop, Given, Outcome
from node.compute.meter import Meter, StepTime
from node.compute.prefix import PrefixIndex
from node.compute.scheduler import Owner, Piece
from node.hop.answers import Answers
from node.hop.backlog import Backlog, Pending
from node.hop.emitter import Emitter, Item, tell_lacking
from node.hop.forks import CannotFork
from node.hop.growth import Growth, Unpaged
from node.hop.intake import Intake
from node.hop.lanes import Lanes
from node.hop.life import Event, Life
from node.hop.neighbours import Neighbours
from node.hop.reuse import Reuse
from node.hop.seats import Seat
from node.hop.sender import Sender
from node.hop.steps import Shape, explain
from protocol import limits
from protocol.errors import CacheFull, LocalProtocolError, Lost, Malformed, RemoteProtocolError, SwarmError
from protocol.messages import Close, Error, Fork, Message, Open, Ping, Pong, Relink, Step
from protocol.talk.channel import Channel
from protocol.talk.outbox import Outbox
from protocol.transport.allowance import Allowance, PeerAllowance

logger = logging.getLogger(__name__)

# When to come again where there was no room: a session ends when a user stops reading.
RETRY_AFTER_S = 2.0

_keys = itertools.count()


@dataclass(frozen=True, slots=True)
class Machine:
    """What all sessions of a node share.

    forks: how much of other sessions a peer may begin with
    prefixes: where they find what others computed, if they do
    """

    engine: Engine
    loop: EngineLoop
    neighbours: Neighbours
    growth: Growth
    meter: Meter
    forks: PeerAllowance
    prefixes: PrefixIndex | None = None


class HopSession:
    """A session as its hop keeps it, from Opened to the end of the client's stream.

    What it may hold is its seat's; the seat is given back when the last of it is gone, or before, to who needs it.
    """

    def __init__(self, machine: Machine, client: Channel, opened: Open, shape: Shape, seat: Seat) -> None:
        self.key = next(_keys)
        self.owner = Owner(seat.origin, seat.peer)
        self.shape = shape
        self._machine = machine
        self._client = client
        self._seat = seat
        self._first_next = opened.next
        self._is_fork = opened.fork is not None
        self._life = Life()
        self._computed = 0  # the highest number plus one
        self._engine_failed = False
        self._unpaged = Unpaged(machine.growth, seat)
        self._backlog = Backlog(shape, seat)
        self._answers = Answers(client, self._life, self._backlog)
        prefixes = machine.prefixes if opened.reuse else None
        self._reuse = Reuse(shape, seat.origin, prefixes, machine.loop.executor)
        self._lanes = Lanes(machine.engine, shape, self._reuse)  # for the thread that computes
        forks_wait_s = partial(machine.forks.wait_s, seat.origin, seat.peer)
        self._intake = Intake(shape, self._life, self._backlog, self._reuse, forks_wait_s)
        # No method of ours: parts that know us would keep everything until a collection.
        open_stream = partial(machine.neighbours.open_stream, asker=self.owner)
        bridged = opened.bridged and opened.next is None
        outbox = Outbox[Item]()
        on_unknown = partial(tell_lacking, outbox)
        self._sender = Sender(shape, open_stream, on_unknown, self._answers, bridged=bridged)
        self._emitter = Emitter(outbox, self._sender, self._answers, self._backlog, self._reuse, self._life)
        self._taken: Pending | None = None  # computed, and to be sent on
        self._relinks = Allowance(limits.RELINKS_PER_S, limits.RELINKS_BURST)
        self._attached = trio.CancelScope()
        self._quiet_since = trio.current_time()  # never, while a message is heard

    async def run(self) -> Error | None:
        """Serve the session until the client ends it or it fails, and free everything; what the client is to hear."""
        try:
            with self._life.scope:
                async with trio.open_nursery() as nursery:
                    if self._first_next is not None:
                        neighbours = self._machine.neighbours
                        link = partial(neighbours.open_stream, asker=self.owner, forks=self._is_fork)
                        self._sender.start_link(nursery, self._first_next, link)
                    nursery.start_soon(self._emitter.run, nursery)
                    nursery.start_soon(self._answers.run)
                    nursery.start_soon(self._compute_unpaged)
                    nursery.start_soon(self._end_idle)
                    await self._read_client()
            return self._life.failure
        finally:
            self.free()

    async def begin_with(self, other: HopSession, fork: Fork) -> None:
        """Begin with what another session has; before anything else happens to this one. Raises: CannotFork."""
        try:
            with trio.fail_after(limits.FORK_WAIT_S):
                journal = await other._sender.fork(fork.position, fork.after, self.shape.max_tokens)
        except (LocalProtocolError, trio.TooSlowError):
            raise CannotFork("that session has something else") from None
        self._reuse.settle()
        taken = trio.Event()
        errors: list[Exception] = []

        def done(outcome: Outcome[None]) -> None:
            errors.extend([] if outcome.error is None else [outcome.error])
            taken.set()

        # Also where nobody waits for it any more: what closes the cache comes behind it.
        self._machine.loop.executor.submit(
            partial(self._lanes.take, other._lanes, fork.position, fork.after), done
        )
        await taken.wait()
        if errors:
            raise CannotFork(str(errors[0]) if isinstance(errors[0], SwarmError) else "the engine failed")
        self._intake.begin_at(fork.after, fork.position)
        self._computed = fork.after
        self._sender.begin_with(fork.after, journal)

    def fail(self, why: Error) -> None:
        """End the session; the first reason given is the one the client is told."""
        self._life.fail(why)

    def free(self) -> None:
        """Give everything back, whatever still runs. Safe to call twice."""
        if not self._life.happens(Event.RELEASE):
            return
        self._attached.cancel()
        self._machine.loop.drop(self)
        self._emitter.close()
        if self._backlog.is_idle and self._sender.emitted == self._computed and not self._engine_failed:
            self._reuse.part(self._sender.rows)
        self._reuse.give_back()
        self._backlog.forget()
        self._unpaged.forget()
        self._sender.forget()
        # Closed by the worker, after whatever runs: only then is the memory free for another session.
        self._machine.loop.executor.submit(self._lanes.close, self._released)

    # --- reading

    async def read_attached(self, channel: Channel) -> None:
        """Take steps from the hop before, until its stream ends, a newer one comes, or the session ends.

        Raises: Lost, Malformed or TooLarge, of that stream; the session stays.
        """
        self._attached.cancel()
        self._attached = scope = trio.CancelScope()
        with scope:
            async with aclosing(self._intake.take_all(channel)) as taken:
                async for pending in taken:
                    self._queue(pending)

    async def _read_client(self) -> None:
        """Returns when the session has ended."""
        try:
            while True:
                message = await self._client.receive()
                if message is None or isinstance(message, Close | Error):
                    self._life.happens(Event.GOODBYE)
                    return
                self._quiet_since = math.inf
                await self._hear(message)
                self._quiet_since = trio.current_time()
        except RemoteProtocolError as error:
            self.fail(Error("malformed", str(error), elsewhere=False))
        except Lost:
            self._life.happens(Event.LOSS)

    async def _end_idle(self) -> None:
        """Fail when nothing has been heard for long; looked at now and then, as a deadline for each message costs."""
        while True:
            quiet_s = max(0.0, trio.current_time() - self._quiet_since)
            if quiet_s >= limits.SESSION_IDLE_S:
                break
            await trio.sleep(limits.SESSION_IDLE_S - quiet_s)
        said = f"nothing was heard for {limits.SESSION_IDLE_S:g} s"
        self.fail(Error("idle", said, elsewhere=False))

    async def _hear(self, message: Message) -> None:
        if isinstance(message, Step):
            await self._accept(message)
        elif isinstance(message, Ping):
            await self._answers.send(Pong(message.nonce, self._intake.received, self._computed))
        elif isinstance(message, Relink):
            await self._hear_relink(message)

    async def _hear_relink(self, relink: Relink) -> None:
        if self.shape.has_head and relink.next is not None:
            raise Malformed("there is no hop after the head")
        await self._emitter.wait_relinked()  # one at a time: what waits is bounded
        await trio.sleep(self._relinks.wait_s(self.owner.peer, trio.current_time(), 1))
        self._emitter.relink(relink)

    async def _accept(self, step: Step) -> None:
        """Take a step of the client."""
        taken = await self._intake.take(step, from_client=True)
        if isinstance(taken, Pending):
            self._queue(taken)
        elif taken is not None and step.number < self._sender.emitted:
            self._emitter.emit_again(step.number)

    def _queue(self, pending: Pending) -> None:
        if pending.step.inputs.rows:
            self._reuse.settle()
        if pending.step.lanes:
            self._seat.most = max(self._seat.most, self.shape.max_tokens * self._intake.lanes)
        self._backlog.add(pending)
        if not self._unpaged.holds(pending):
            self._compute(pending)

    def _compute(self, pending: Pending) -> None:
        """Have what is left of a step computed; if nothing is, it goes on at once."""
        number, rows = pending.step.number, pending.step.inputs.rows
        if rows:
            self._machine.loop.submit(self, number, rows)
        else:
            self._computed = number + 1
            self._backlog.computed(pending)
            self._emitter.emit(pending)

    async def _compute_unpaged(self) -> None:
        try:
            await self._unpaged.run(self._compute)
        except CacheFull as error:
            self.fail(Error("busy", str(error), elsewhere=True, retry_after_s=RETRY_AFTER_S))

    # --- computing

    def prepare(self, piece: Piece) -> Sequence[Call]:
        """See `node.compute.loop.Runnable`. The event loop leaves the step alone meanwhile."""
        pending = self._backlog.find(piece.number)
        return (
            () if pending is None else self._lanes.calls(pending, piece)
        )  # else the session ended just before

    def take(self, piece: Piece, outcome: Outcome[Given], *, alone: bool) -> None:
        """See `node.compute.loop.Runnable`. After its last piece, or a failure, a step goes to the sender."""
        if not self._life.happens(Event.RESULT):
            return
        pending = self._backlog.find(piece.number)
        assert pending is not None, "it waits until its last piece has run"
        pending.add(outcome, alone=alone)
        self._reuse.give_back()
        if outcome.error is not None:
            self._engine_failed = True
            pending.failure = explain(outcome.error, from_client=pending.from_client)
            if pending.failure.code == "engine":
                logger.error("the engine failed in a session of %s", self.owner.peer, exc_info=outcome.error)
            self._machine.loop.drop(self)
        elif not piece.last:
            return
        else:
            self._computed = piece.number + 1
        self._backlog.computed(pending)
        self._taken = pending

    def pass_on(self) -> None:
        """See `node.compute.loop.Runnable`."""
        pending, self._taken = self._taken, None
        if pending is None:
            return
        self._emitter.emit(pending)
        if pending.failure is None:
            rows, head = pending.step.inputs.rows, pending.want.kind == "candidates"
            self._machine.meter.observe(
                StepTime(rows, self.shape.blocks, head, pending.queue_ms, pending.compute_ms, pending.alone),
                time.perf_counter(),
            )

    # --- the end

    def _released(self, outcome: Outcome[None]) -> None:
        self._machine.growth.release(self._seat)
        self._reuse.leave_last()
        if outcome.error is not None:
            logger.error("a cache could not be closed", exc_info=outcome.error)
