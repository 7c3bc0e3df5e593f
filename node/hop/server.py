"""Sessions: who may open one, who may attach to one, and how they all end."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

import trio

from node.compute.counts import Counts
from node.compute.interfaces import Engine, KvPage
from node.compute.kv import room_for, token_bytes_at
from node.compute.loop import EngineLoop, Executor, WorkerThread
from node.compute.measure import Speed
from node.compute.meter import Meter
from node.compute.prefix import PrefixIndex
from node.compute.scheduler import Scheduler
from node.compute.sizing import Sizer
from node.hop.admission import PAUSE_S, Admission
from node.hop.forks import CannotFork
from node.hop.growth import Growth
from node.hop.neighbours import Neighbours
from node.hop.seats import Seat
from node.hop.session import RETRY_AFTER_S, HopSession, Machine
from node.hop.steps import Shape
from protocol import limits
from protocol.errors import Busy, CacheFull, RemoteProtocolError, TimedOut
from protocol.messages import SESSION_PROTOCOL, Attach, Error, Fork, Open, Opened, Refused
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.transport.allowance import Allowance, PeerAllowance
from protocol.transport.base import Stream, Transport
from protocol.transport.slots import Slots

logger = logging.getLogger(__name__)

# Who steps once a second pauses long enough to give way within this, and most of the time the client has for an
# answer is left.
SEAT_WAIT_S = 1.0
# Half of the pause that it takes.
SEAT_LOOK_S = PAUSE_S / 2
# What an origin may open comes back this soon.
RETRY_SOON_S = 0.2

LEAVING = Error("leaving", "this node is leaving", elsewhere=True)
NO_FORK = Refused("fork", "there is no such session of yours over these stages", 0.0)
GAVE_WAY = Error("gave_way", "idle, and others need the room", elsewhere=True)


class HopServer:
    """Serves the sessions of one engine over one transport.

    `neighbours` opens the streams to next hops (without: to nodes that are connected already); `speed` is the
    engine's, by which batches are sized at first (without: as large as may be); `executor` runs the engine (a thread
    of its own, unless given). Of what sessions compute, up to `prefix_bytes` are kept for those that begin alike,
    where the engine's caches share pages: of what `budget` has for sessions, as long as these do not need it.
    """

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        budget: Admission,
        *,
        neighbours: Neighbours | None = None,
        speed: Speed | None = None,
        executor: Executor | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        self.counts = Counts()
        self.meter = Meter(speed, self.counts)
        self.scheduler = Scheduler()
        executor = executor or WorkerThread()
        sizer = None if speed is None else Sizer(speed, len(engine.span))
        loop = EngineLoop(engine, executor, self.scheduler, sizer, self.counts)
        neighbours = neighbours or Neighbours(transport)
        growth = Growth(budget, self._give_way, self._fit_prefixes)
        prefixes = _prefixes(prefix_bytes, executor) if engine.shares_pages and prefix_bytes else None
        self._forks = PeerAllowance(limits.FORKS_PER_S, limits.FORKS_BURST)
        self._machine = Machine(engine, loop, neighbours, growth, self.meter, self._forks, prefixes)
        self._budget = budget
        self._prefix_bytes = prefix_bytes
        self._token_bytes = token_bytes_at(engine)
        self._transport = transport
        self._digest = engine.manifest.digest
        self._sessions: dict[bytes, HopSession] = {}
        self._seated: dict[Seat, HopSession] = {}
        self._opens = PeerAllowance(limits.OPENS_PER_S, limits.OPENS_BURST)
        self._opens_of_origin = Allowance(limits.ORIGIN_OPENS_PER_S, limits.ORIGIN_OPENS_BURST)
        self._newcomers = Slots(limits.NEWCOMERS)
        self._attaching = Slots(limits.ATTACH_WAITERS)
        self._awaited: dict[bytes, trio.Event] = {}
        self._draining = False
        self._empty = trio.Event()

    def __len__(self) -> int:
        """Sessions open now."""
        return len(self._sessions)

    def offer(self) -> int:
        """Tokens that a newcomer's session would get now."""
        engine = self._machine.engine
        return self._budget.offer(
            lambda tokens: Shape(engine.span, engine.manifest, engine.dtype, tokens).buffer_bytes,
            trio.current_time(),
        )

    def idle_s(self) -> float:
        """How long nothing has been computed for anybody."""
        return self._machine.loop.idle_s(time.perf_counter())

    @property
    def prefixes(self) -> PrefixIndex | None:
        """What sessions computed, for those that begin alike."""
        return self._machine.prefixes

    def serve(self) -> None:
        """Answer session streams from now on."""
        self._transport.serve(SESSION_PROTOCOL, self.handle)

    async def drain(self, within_s: float) -> None:
        """Take no more sessions, end those there are by telling their clients; wait for that, but not long."""
        self._draining = True
        for session in self._sessions.values():
            session.fail(LEAVING)
        if self._sessions:
            with trio.move_on_after(within_s):
                await self._empty.wait()

    async def handle(self, stream: Stream) -> None:
        """One incoming stream: a client's, or a previous hop's."""
        state = StreamState(Side.HOP)
        async with Channel(stream, state=state, frame_limit=limits.FIRST_FRAME_BYTES) as channel:
            try:
                with self._newcomers.taken(stream), trio.fail_after(limits.FIRST_MESSAGE_TIMEOUT_S):
                    first = await channel.receive()
                if isinstance(first, Open):
                    await self._open(channel, first)
                elif isinstance(first, Attach):
                    await self._attach(channel, first)
            except trio.TooSlowError:
                raise TimedOut("the stream said nothing") from None
            except RemoteProtocolError as error:
                logger.info("%s broke the protocol: %s", stream.peer, error)
                await say_error(channel, Error("malformed", str(error), elsewhere=False))

    # --- a client's stream

    async def _open(self, channel: Channel, asked: Open) -> None:
        engine = self._machine.engine
        shape = Shape(asked.span, engine.manifest, engine.dtype, asked.max_tokens)
        granted = await self._grant(channel.stream, asked, shape)
        if isinstance(granted, Refused):
            logger.info("refused a session to %s: %s", channel.peer, granted.reason)
            self.counts.refused[granted.code] += 1
            await channel.send(granted)
            return
        channel.stream.keep()
        channel.stream.widen()
        session = self._seated[granted] = HopSession(self._machine, channel, asked, shape, granted)
        failure = None
        try:
            refused = await self._begin(session, asked)
            if refused is None:
                failure = await self._run(session, channel, asked.session)
        finally:
            session.free()
            del self._seated[granted]
        if refused is not None:
            self.counts.refused[refused.code] += 1
            await channel.send(refused)
        if failure is not None:
            logger.info("a session of %s failed: %s", channel.peer, failure.message)
            await say_error(channel, failure)

    async def _begin(self, session: HopSession, asked: Open) -> Refused | None:
        """Let a fork begin with what it asks for; why not."""
        if asked.fork is None:
            return None
        other = self._sessions.get(asked.fork.session)
        if other is None or other.owner.peer != session.owner.peer or other.shape.span != asked.span:
            return NO_FORK
        try:
            await session.begin_with(other, asked.fork)
        except CannotFork as error:
            return Refused("fork", str(error), 0.0)
        return self._why_not(asked)  # it took a while

    async def _run(self, session: HopSession, channel: Channel, id: bytes) -> Error | None:
        """Serve a session under its id to its end; what its client is to hear."""
        self.counts.opened += 1
        self._sessions[id] = session
        awaited = self._awaited.get(id)
        if awaited is not None:
            awaited.set()
        try:
            channel.frame_limit = session.shape.frame_bytes
            engine = self._machine.engine
            await channel.send(Opened(engine.dtype, engine.numerics, engine.goes_back))
            return await session.run()
        finally:
            session.free()
            del self._sessions[id]
            if not self._sessions:
                self._empty.set()

    async def _grant(self, stream: Stream, asked: Open, shape: Shape) -> Seat | Refused:
        """Its seat, or why not. Who has to give way for it is told.

        Where somebody will have to give way unless it goes on soon, that is waited for, not long: who comes with
        nothing need not come at the right moment to find those who have much between two of their steps.
        """
        began = now = trio.current_time()
        refused = self._why_not(asked) or self._paced(stream, asked.fork, now)
        if refused is not None:
            return refused
        budget, most = self._budget, asked.max_tokens
        begins = 1 if asked.fork is None else asked.fork.position
        seat = Seat(stream.peer, stream.origin, room_for(begins, most), shape.buffer_bytes, most=most)
        while True:
            try:
                gone = budget.take(seat, now)
                break
            except CacheFull as error:
                if now >= began + SEAT_WAIT_S or not budget.is_owed(seat, now):
                    return Refused("busy", str(error), RETRY_AFTER_S)
            await trio.sleep(SEAT_LOOK_S)
            now = trio.current_time()
            refused = self._why_not(asked)
            if refused is not None:
                return refused
        for other in gone:
            self._give_way(other)
        self._fit_prefixes()
        return seat

    def _fit_prefixes(self) -> None:
        """What is kept has what no seat holds: who computes comes before who may come."""
        if self.prefixes is not None:
            self.prefixes.shrink(min(self._prefix_bytes, self._budget.free * self._token_bytes))

    def _give_way(self, seat: Seat) -> None:
        if seat in self._seated:
            self.counts.gave_way += 1
            self._seated[seat].fail(GAVE_WAY)

    def _why_not(self, asked: Open) -> Refused | None:
        """Why there is no such session here, whoever asks."""
        machine = self._machine
        manifest, span = machine.engine.manifest, machine.engine.span
        if self._draining:
            return Refused("draining", "this node is leaving", 0.0)
        if asked.model != self._digest:
            here, there = self._digest.hex()[:12], asked.model.hex()[:12]
            return Refused("model", f"this node serves model {here}, you asked for {there}", 0.0)
        if not span.covers(asked.span):
            return Refused("span", f"this node serves stages {span}, you asked for {asked.span}", 0.0)
        if asked.next is not None and asked.span.stop == manifest.stages:
            return Refused("span", "there is no hop after the head", 0.0)
        most = min(manifest.context, self._budget.room.of_peer.tokens)
        if not 1 <= asked.max_tokens <= most:
            return Refused("capacity", f"a session here has 1 to {most} tokens, not {asked.max_tokens}", 0.0)
        if asked.session in self._sessions:
            return Refused("busy", "this session is open already", RETRY_AFTER_S)
        return None

    def _paced(self, stream: Stream, fork: Fork | None, now: float) -> Refused | None:
        """Charge an opening to its peer and origin; why not, if they open too many."""
        cost = 1 if fork is None else 1 + fork.position // limits.FORK_TOKENS
        opens = self._opens if fork is None else self._forks
        if not opens.take(stream.origin, stream.peer, now, cost):
            return Refused("busy", "you open too many sessions", RETRY_AFTER_S)
        if not self._opens_of_origin.take(stream.origin, now):
            return Refused("busy", "too many sessions are opened from where you are", RETRY_SOON_S)
        return None

    # --- a previous hop's stream

    async def _attach(self, channel: Channel, attach: Attach) -> None:
        session = await self._find(attach.session, channel.stream)
        if session is None or session.shape.span.start != attach.stage:
            code, message = "unknown_session", "no such session here"
            if session is not None:
                code, message = "bad_stage", f"that session does not begin at stage {attach.stage}"
            await say_error(channel, Error(code, message, elsewhere=False))
            return
        channel.stream.keep()
        channel.stream.widen()
        channel.frame_limit = session.shape.frame_bytes
        await session.read_attached(channel)

    async def _find(self, session: bytes, stream: Stream) -> HopSession | None:
        """The session, once it is open: a client asks all its hops at once, in no order."""
        if session not in self._sessions:
            opened = self._awaited.setdefault(session, trio.Event())
            with suppress(Busy), self._attaching.taken(stream), trio.move_on_after(limits.ATTACH_WAIT_S):
                await opened.wait()
            self._awaited.pop(session, None)
        return self._sessions.get(session)


async def say_error(channel: Channel, error: Error) -> None:
    """Tell the peer why, if it still listens."""
    with trio.move_on_after(limits.GOODBYE_TIMEOUT_S):
        await channel.send(error)


def _prefixes(most_bytes: int, executor: Executor) -> PrefixIndex:
    def release(pages: Sequence[KvPage]) -> None:
        """In the worker thread, like all that counts who holds a page."""

        def work() -> None:
            for page in pages:
                page.release()

        executor.submit(work, lambda _: None)

    return PrefixIndex(most_bytes, release)
