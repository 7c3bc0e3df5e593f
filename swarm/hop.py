"""One hop of an open session: its stream, what was heard from it, and why it failed if it did."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import trio

from protocol import limits
from protocol.errors import Busy, LocalProtocolError, Lost, Malformed, PeerUnavailable, TimedOut
from protocol.journal import Journal
from protocol.messages import (
    SESSION_PROTOCOL,
    Ack,
    Close,
    Error,
    Message,
    NextHop,
    Open,
    Opened,
    Ping,
    Pong,
    Refused,
)
from protocol.session import Side, StreamState
from protocol.transport.base import Transport
from protocol.transport.channel import Channel
from swarm.route import Hop


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a hop says a step cost it."""

    number: int
    queue_ms: float
    compute_ms: float


class HopLink:
    """The client's end of a hop. `feed`, the journal of what it was sent, is set while the client itself feeds it."""

    def __init__(self, hop: Hop, session: bytes, channel: Channel) -> None:
        now = trio.current_time()
        self.hop = hop
        self.session = session
        self.channel = channel
        self.feed: Journal | None = None
        self.fill_until = hop.span.stop  # the stage up to which what fills this hop fills those behind it
        self.filled_at = 0  # the steps received when its filling is done
        self.failure: str | None = None
        self.link_down: str | None = None  # why this hop cannot reach the next one
        self.acked = 0  # steps computed: the highest number acknowledged, plus one
        self.acked_at = now
        self.received = 0  # steps received, as of the latest pong or ack
        self.heard_at = now
        self.pong_at = now
        self.costs: deque[StepCost] = deque(maxlen=4096)
        self._outbox, self._posted = trio.open_memory_channel[Message](float("inf"))
        self._pings = 0
        self._ponged = 0

    def address(self) -> NextHop:
        """How another hop reaches this one."""
        return NextHop(self.hop.peer, self.session)

    def fail(self, reason: str) -> None:
        """Mark the hop dead and end its stream, so that whoever waits on it goes on. Never blocks."""
        if self.failure is None:
            self.failure = reason
        self.channel.stream.reset()
        self._outbox.close()

    def post(self, message: Message) -> None:
        """Have a message sent after those posted before. What waits is in a journal as well, which bounds it."""
        if self.failure is None:
            self._outbox.send_nowait(message)

    async def send_posted(self) -> None:
        """Send what is posted, until the hop is given up."""
        async for message in self._posted:
            await self._send(message)

    async def close(self) -> None:
        """Say that the session is over, and free the stream."""
        if self.failure is None:
            await self._send(Close())
            await self.channel.stream.aclose()

    async def _send(self, message: Message) -> None:
        try:
            await self.channel.send(message)
        except PeerUnavailable:
            return  # whoever reads the stream hears of its end too, and says what follows from it
        except LocalProtocolError:
            if self.failure is None:  # else the stream closed while this waited its turn
                raise

    @property
    def filled(self) -> bool:
        """Whether it has received all that was through when it was opened."""
        return self.received >= self.filled_at

    @property
    def ping_is_out(self) -> bool:
        """Whether a ping waits for its answer."""
        return self._pings > self._ponged

    async def ping(self) -> None:
        """Ask for a pong."""
        self._pings += 1
        await self._send(Ping(self._pings))

    def note_pong(self, pong: Pong) -> None:
        """Take what a pong says."""
        self._ponged = max(self._ponged, min(pong.nonce, self._pings))
        self.pong_at = trio.current_time()
        self.received = max(self.received, pong.received)

    def note_ack(self, ack: Ack) -> None:
        """Take what an ack says."""
        self.acked = max(self.acked, ack.number + 1)
        self.received = max(self.received, self.acked)
        self.acked_at = trio.current_time()
        self.costs.append(StepCost(ack.number, ack.queue_ms, ack.compute_ms))


async def open_hop(transport: Transport, hop: Hop, request: Open) -> HopLink:
    """Open a session at one hop.

    Raises: Busy, when it refuses for now; Unreachable, TimedOut or Lost; Malformed, when it refuses what it
    announces or answers nonsense.
    """
    stream = await transport.open_stream(hop.peer, hop.addrs, SESSION_PROTOCOL)
    channel = Channel(stream, state=StreamState(Side.OPENER))
    try:
        await channel.send(request)
        with trio.fail_after(limits.OPEN_TIMEOUT_S):
            reply = await channel.receive()
        _check_opened(reply)
    except trio.TooSlowError:
        stream.reset()
        raise TimedOut(f"no answer within {limits.OPEN_TIMEOUT_S:g} s") from None
    except BaseException:
        stream.reset()
        raise
    return HopLink(hop, request.session, channel)


def _check_opened(reply: Message | None) -> None:
    match reply:
        case Opened():
            return
        case None:
            raise Lost("closed the stream when asked to serve")
        case Refused(code="model" | "span", reason=reason):
            raise Malformed(f"announces what it refuses: {reason}")
        case Refused(reason=reason, retry_after_s=retry_after_s):
            raise Busy(reason, retry_after_s)
        case Error(message=text):
            raise Lost(text)
        case _:
            raise Malformed(f"answered {reply.tag} to open")
