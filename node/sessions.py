"""Sessions: who may open one, who may attach to one, and how they all end."""

from __future__ import annotations

import logging
import time

import trio

from node.compute import EngineLoop, Executor, WorkerThread
from node.hop_session import HopSession, Machine
from node.interfaces import Engine
from node.kv import KvBudget, Reservation
from node.meter import Meter
from node.scheduler import Scheduler
from protocol import limits
from protocol.errors import CacheFull, RemoteProtocolError, TimedOut
from protocol.messages import SESSION_PROTOCOL, Attach, Error, Open, Opened, Refused
from protocol.session import Side, StreamState
from protocol.transport.base import Stream, Transport
from protocol.transport.channel import Channel

logger = logging.getLogger(__name__)

# A session ends when a user stops reading; a few seconds are worth waiting for one.
RETRY_AFTER_S = 2.0


class Hop:
    """Serves the sessions of one engine over one transport.

    `budget` is shared with whoever announces it; `executor` runs the engine (a thread of its own, unless given).
    """

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        budget: KvBudget,
        *,
        meter: Meter | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.meter = meter or Meter()
        self.scheduler = Scheduler()
        loop = EngineLoop(executor or WorkerThread(), self.scheduler)
        self._machine = Machine(engine, loop, transport, budget, self.meter)
        self._digest = engine.manifest.digest
        self._sessions: dict[bytes, HopSession] = {}
        self._awaited: dict[bytes, trio.Event] = {}
        self._draining = False
        self._empty = trio.Event()

    def __len__(self) -> int:
        """Sessions open now."""
        return len(self._sessions)

    def queue_ms(self) -> float:
        """How long recent steps waited for others."""
        return self.meter.queue_ms(time.perf_counter())

    def serve(self) -> None:
        """Answer session streams from now on."""
        self._machine.transport.serve(SESSION_PROTOCOL, self.handle)

    async def drain(self, within_s: float) -> None:
        """Take no more sessions, end those there are by telling their clients; wait for that, but not long."""
        self._draining = True
        for session in self._sessions.values():
            session.fail("leaving", "this node is leaving", elsewhere=True)
        if self._sessions:
            with trio.move_on_after(within_s):
                await self._empty.wait()

    async def handle(self, stream: Stream) -> None:
        """One incoming stream: a client's, or a previous hop's."""
        state = StreamState(Side.HOP)
        async with Channel(stream, state=state, frame_limit=limits.CONTROL_FRAME_BYTES) as channel:
            try:
                with trio.fail_after(limits.FIRST_MESSAGE_TIMEOUT_S):
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
        granted = self._grant(channel.peer, asked)
        if isinstance(granted, Refused):
            logger.info("refused a session to %s: %s", channel.peer, granted.reason)
            await channel.send(granted)
            return
        channel.stream.keep()
        channel.stream.widen()
        session = HopSession(self._machine, channel, asked, granted)
        self._sessions[asked.session] = session
        awaited = self._awaited.get(asked.session)
        if awaited is not None:
            awaited.set()
        try:
            channel.frame_limit = session.shape.frame_bytes
            await channel.send(Opened(self._machine.engine.dtype))
            await session.run()
        finally:
            session.free()
            del self._sessions[asked.session]
            if not self._sessions:
                self._empty.set()
        if session.failure is not None:
            logger.info("a session of %s failed: %s", channel.peer, session.failure.message)
            await say_error(channel, session.failure)

    def _grant(self, peer: str, asked: Open) -> Reservation | Refused:
        """Its KV cache, or why not."""
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
        most = min(manifest.context, machine.budget.total)
        if not 1 <= asked.max_tokens <= most:
            return Refused("capacity", f"a session here has 1 to {most} tokens, not {asked.max_tokens}", 0.0)
        if asked.session in self._sessions:
            return Refused("busy", "this session is open already", RETRY_AFTER_S)
        if len(self._sessions) >= limits.SESSIONS:
            return Refused("busy", f"all {limits.SESSIONS} sessions are taken", RETRY_AFTER_S)
        of_peer = sum(session.peer == peer for session in self._sessions.values())
        if of_peer >= limits.SESSIONS_PER_PEER:
            return Refused("busy", f"you have {of_peer} sessions here", RETRY_AFTER_S)
        try:
            return machine.budget.reserve(asked.max_tokens)
        except CacheFull as error:
            return Refused("busy", str(error), RETRY_AFTER_S)

    # --- a previous hop's stream

    async def _attach(self, channel: Channel, attach: Attach) -> None:
        session = await self._find(attach.session)
        if session is None:
            await say_error(channel, Error("unknown_session", "no such session here", elsewhere=False))
            return
        channel.stream.keep()
        channel.stream.widen()
        channel.frame_limit = session.shape.frame_bytes
        await session.read_attached(channel)

    async def _find(self, session: bytes) -> HopSession | None:
        """The session, once it is open: a client asks all its hops at once, in no order."""
        if session not in self._sessions and len(self._awaited) < limits.ATTACH_WAITERS:
            opened = self._awaited.setdefault(session, trio.Event())
            with trio.move_on_after(limits.ATTACH_WAIT_S):
                await opened.wait()
            self._awaited.pop(session, None)
        return self._sessions.get(session)


async def say_error(channel: Channel, error: Error) -> None:
    """Tell the peer why, if it still listens."""
    with trio.move_on_after(limits.GOODBYE_TIMEOUT_S):
        await channel.send(error)
