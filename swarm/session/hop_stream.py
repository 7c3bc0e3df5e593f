"""One hop of an open session: its stream, what was heard from it, and why it failed if it did."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

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
    Refused,
    Relink,
    Step,
)
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.transport.base import Transport
from swarm.routing.route import Hop
from swarm.session.claims import Claims
from swarm.session.outputs import FRAME_EXTRA_BYTES, Misfit

# A reason that a peer gives, as users see it; some hops may give one in a row.
QUOTE_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a hop says a step cost it."""

    number: int
    queue_ms: float
    compute_ms: float


class HopStream:
    """The client's end of a hop. `feed`, the journal of what it was sent, is set while the client itself feeds it."""

    def __init__(self, hop: Hop, request: Open, dtype: str, channel: Channel) -> None:
        self.hop = hop
        self.session = request.session
        self.dtype = dtype  # of the hidden states it gives
        self.channel = channel
        self.claims = Claims(trio.current_time())
        self.feed: Journal | None = None
        self.fed_from = 0  # steps of lower numbers may have reached it from the hop before
        self.bridged_from: int | None = None  # set: its results come to us, before its acks from this step on
        self.fill_until = hop.span.stop  # the stage up to which what fills this hop fills those behind it
        self.filled_at = 0  # the steps received when its filling is done
        self.patience = 1  # how many times the usual time it may take
        self.failure: str | None = None
        self.link_down: str | None = None  # why this hop cannot reach the next one
        self.accused = 0  # how often a hop that it fed failed in a way that this hop may have brought about
        self.costs: deque[StepCost] = deque(maxlen=4096)
        self._links_left = 0 if request.next is None else 1  # links it was given and has not reported as lost
        self._said = 0
        self._outbox, self._posted = trio.open_memory_channel[Message](float("inf"))
        if request.bridged:
            self.bridged_from = 0

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

    def relink(self, following: NextHop, live_from: int, fill_until: int) -> None:
        """Have it send on to another hop, and fill that one."""
        self.link_down = None
        self._links_left += 1
        self.post(Relink(following, False, live_from, fill_until))

    def bridge(self, sent: int, live_from: int, frame_bytes: int) -> None:
        """Have its results come to us from now on; those of `sent` steps may have gone to the next hop until now."""
        self.link_down = None
        self.bridged_from = sent
        self.claims.owe_results(0, trio.current_time())
        self.allow(frame_bytes)
        self.post(Relink(None, True, live_from, 0))

    def allow(self, frame_bytes: int) -> None:
        """Take frames of this size, which may be the answer to what it is asked."""
        self.channel.frame_limit = max(self.channel.frame_limit, frame_bytes)

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
        if isinstance(message, Step):
            self.claims.sent = max(self.claims.sent, message.number + 1)
        try:
            await self.channel.send(message)
        except PeerUnavailable:
            return  # whoever reads the stream hears of its end too, and says what follows from it
        except LocalProtocolError:
            if self.failure is None:  # else the stream closed while this waited its turn
                raise

    @property
    def fed_by_us(self) -> bool:
        """Whether all that it was sent came from us: then whatever it gets wrong is its own fault."""
        return self.feed is not None and self.fed_from == 0

    @property
    def filled(self) -> bool:
        """Whether it has received all that was through when it was opened."""
        return self.claims.received >= self.filled_at

    async def ping(self) -> None:
        """Ask for a pong."""
        await self._send(self.claims.ping(trio.current_time()))

    def note_said(self, most: int) -> None:
        """It says one more thing about steps. Raises: Misfit, if it has said more than `most`."""
        self._said += 1
        if self._said > most:
            raise Misfit("says more than it was asked for")

    def note_ack(self, ack: Ack) -> None:
        """Take what an ack says."""
        self.claims.ack(ack, trio.current_time())
        self.costs.append(StepCost(ack.number, ack.queue_ms, ack.compute_ms))

    def note_link_down(self) -> None:
        """It says that it lost a link. Raises: Malformed, if it has lost all that it was given."""
        self._links_left -= 1
        if self._links_left < 0:
            raise Malformed("lost more links than it was given")


async def open_hop(transport: Transport, hop: Hop, request: Open) -> HopStream:
    """Open a session at one hop.

    Raises: Busy, when it refuses for now; Unreachable, TimedOut or Lost; Malformed, when it refuses what it
    announces or answers nonsense.
    """
    within_s = limits.LINK_TIMEOUT_S + limits.OPEN_TIMEOUT_S
    with trio.move_on_after(within_s):
        stream = await transport.open_stream(hop.peer, hop.addrs, SESSION_PROTOCOL)
        try:
            channel = Channel(stream, state=StreamState(Side.OPENER), frame_limit=FRAME_EXTRA_BYTES)
            await channel.send(request)
            with trio.move_on_after(limits.OPEN_TIMEOUT_S):
                opened = _check_opened(await channel.receive(), hop)
                return HopStream(hop, request, opened.dtype, channel)
        except BaseException:
            stream.reset()
            raise
        stream.reset()
        raise TimedOut(f"no answer within {limits.OPEN_TIMEOUT_S:g} s")
    raise TimedOut(f"no session within {within_s:g} s")


def _check_opened(reply: Message | None, hop: Hop) -> Opened:
    match reply:
        case Opened(dtype=dtype):
            if hop.dtype not in ("", dtype):
                raise Malformed(f"computes in {dtype} and announces {hop.dtype}")
            return reply
        case None:
            raise Lost("closed the stream when asked to serve")
        case Refused(code="model" | "span", reason=reason):
            raise Malformed(f"announces what it refuses: {quoted(reason)}")
        case Refused(reason=reason, retry_after_s=retry_after_s):
            raise Busy(quoted(reason), retry_after_s)
        case Error(message=text):
            raise Lost(quoted(text))
        case _:
            raise Malformed(f"answered {reply.tag} to open")


def quoted(text: str) -> str:
    """What a peer says for people: one line, and no long one."""
    line = " ".join(text.split())
    return line if len(line) <= QUOTE_CHARACTERS else line[: QUOTE_CHARACTERS - 1] + "…"
