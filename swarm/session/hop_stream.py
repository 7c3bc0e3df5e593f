"""One hop of an open session: its stream, what was heard from it, and why it failed if it did."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol import limits
from protocol.errors import Busy, LocalProtocolError, Lost, Malformed, PeerUnavailable, SwarmError, TimedOut
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
from protocol.model import Span
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.talk.outbox import Outbox
from protocol.transport.base import Transport
from swarm.events import Fault
from swarm.routing.route import Hop
from swarm.session.claims import Claims
from swarm.session.outputs import FRAME_EXTRA_BYTES, Misfit, hidden_bytes
from swarm.session.watch import Watched

# A reason that a peer gives, as users see it; some hops may give one in a row.
QUOTE_CHARACTERS: Final = 200
# A fork waits for the steps it comes after, and for what the hop is computing just then.
FORK_TIMEOUT_S: Final = limits.FORK_WAIT_S + 6.0


class NotForked(SwarmError):
    """A hop lets no session begin with what the other one has; it may begin without."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a hop says a step cost it."""

    number: int
    queue_ms: float
    compute_ms: float


class HopStream:
    """The client's end of a hop. What is without underscore is for others to read; they change it by its verbs."""

    def __init__(
        self, planned: Hop, request: Open, hidden_size: int, opened: Opened, channel: Channel
    ) -> None:
        self.planned = planned  # as the route has it
        self.session = request.session
        self.dtype = opened.dtype  # of the hidden states it gives
        self.goes_back = opened.goes_back  # it says that it does
        self.channel = channel
        self.claims = Claims(trio.current_time())
        self.costs: deque[StepCost] = deque(maxlen=4096)
        self.acks = 0  # costs that were told in all
        self._hidden_size = hidden_size
        self._feed: Journal | None = None
        self._fed_from = 0  # steps of lower numbers may have reached it from the hop before
        self._bridged_from = 0 if request.bridged else None
        self._fill_until = planned.span.stop
        self._filled_at = 0
        self._patience = 1  # how many times the usual time it may take
        self._failure: str | None = None
        self.fault: Fault = "lost"  # of what kind, once it has failed
        self._link_down: str | None = None
        self._accused = 0
        self._links_left = 0 if request.next is None else 1  # links it was given and has not reported as lost
        self._said = 0
        self._outbox = Outbox[Message]()

    @property
    def peer(self) -> str:
        """Who it is."""
        return self.planned.peer

    @property
    def span(self) -> Span:
        """The stages it runs here."""
        return self.planned.span

    @property
    def address(self) -> NextHop:
        """How another hop reaches this one."""
        return NextHop(self.peer, self.session)

    @property
    def failure(self) -> str | None:
        """Why it is given up, if it is."""
        return self._failure

    @property
    def watched(self) -> Watched:
        """What there is to know of it for whoever judges how long it takes."""
        return Watched(
            self.session,
            self.planned,
            self.claims,
            failed=self._failure is not None,
            fed_here=self._feed is not None,
            filled_at=self._filled_at,
            patience=self._patience,
        )

    # -- being fed

    @property
    def feed(self) -> Journal | None:
        """The journal of what it was sent, while the client itself feeds it."""
        return self._feed

    @property
    def fed_by_us(self) -> bool:
        """Whether all that it was sent came from us: then whatever it gets wrong is its own fault."""
        return self._feed is not None and self._fed_from == 0

    def take_feed(self, journal: Journal, fed_from: int = 0) -> None:
        """The client feeds it from now on; steps below `fed_from` may have reached it from the hop before."""
        self._feed, self._fed_from = journal, fed_from

    def leave_feed(self) -> None:
        """The hop before it feeds it from now on."""
        self._feed = None

    def reach(self, sent: int) -> int:
        """The steps it can have got by now, of the `sent` there are: the highest number plus one."""
        return sent if self._feed is None else max(self.claims.sent, self._fed_from)

    # -- being filled

    @property
    def filled(self) -> bool:
        """Whether it has received all that was through when it was opened."""
        return self.claims.received >= self._filled_at

    @property
    def filled_at(self) -> int:
        """The steps received when its filling is done."""
        return self._filled_at

    @property
    def fill_until(self) -> int:
        """The stage up to which what fills this hop fills those behind it."""
        return self._fill_until

    def begin_fill(self, settled: int, fill_until: int, patience: int) -> None:
        """Steps below `settled` will come as fills, which go on to the hops before stage `fill_until`."""
        self._filled_at, self._fill_until, self._patience = settled, fill_until, patience
        if self._bridged_from is not None:
            # its fills come to us as well, if there is another hop to be filled with them
            passes_on = self.span.stop < fill_until
            self.claims.owe_results(0 if passes_on else settled, trio.current_time())
            self.allow(hidden_bytes(self._hidden_size))

    def begin_forked(self, after: int) -> None:
        """It has all that steps below `after` gave to the session that it was forked from."""
        self.claims.begin_at(after)
        self._filled_at = after
        if self._bridged_from is not None:
            self._bridged_from = after
            self.claims.owe_results(after, trio.current_time())
            self.allow(hidden_bytes(self._hidden_size))

    def replay(self) -> None:
        """Send it all that its feed holds: what fills it first."""
        assert self._feed is not None
        for step in self._feed.replay(self._filled_at, self._fill_until):
            self.post(step)

    # -- sending on

    @property
    def bridged_from(self) -> int | None:
        """Set where its results come to us: from this step on they come before its acks."""
        return self._bridged_from

    @property
    def link_down(self) -> str | None:
        """Why it cannot reach the next hop, as far as that is not mended."""
        return self._link_down

    def cut_off(self, reason: str) -> None:
        """It cannot reach the next hop."""
        self._link_down = reason

    def forget_cut(self) -> None:
        """Whether it reaches the next hop is not known, or does not matter any more."""
        self._link_down = None

    def relink(self, following: HopStream) -> None:
        """Have it send on to another hop, and fill that one."""
        self.forget_cut()
        self._links_left += 1
        self.post(Relink(following.address, False, following.filled_at, following.fill_until))

    def bridge(self, sent: int, live_from: int) -> None:
        """Have its results come to us from now on; those of `sent` steps may have gone to the next hop until now."""
        self.forget_cut()
        self._bridged_from = sent
        self.claims.owe_results(0, trio.current_time())
        self.allow(hidden_bytes(self._hidden_size))
        self.post(Relink(None, True, live_from, 0))

    # -- being heard

    @property
    def accused(self) -> int:
        """How often a hop that it fed failed in a way that this hop may have brought about."""
        return self._accused

    def accuse(self) -> None:
        """That happened once more."""
        self._accused += 1

    def note_said(self, most: int) -> None:
        """It says one more thing about steps. Raises: Misfit, if it has said more than `most`."""
        self._said += 1
        if self._said > most:
            raise Misfit("says more than it was asked for")

    def note_ack(self, ack: Ack) -> None:
        """Take what an ack says."""
        self.claims.ack(ack, trio.current_time())
        self.acks += 1
        self.costs.append(StepCost(ack.number, ack.queue_ms, ack.compute_ms))

    def note_link_down(self) -> None:
        """It says that it lost a link. Raises: Malformed, if it has lost all that it was given."""
        self._links_left -= 1
        if self._links_left < 0:
            raise Malformed("lost more links than it was given")

    def allow(self, frame_bytes: int) -> None:
        """Take frames of this size, which may be the answer to what it is asked."""
        self.channel.frame_limit = max(self.channel.frame_limit, frame_bytes)

    # -- the stream

    def post(self, message: Message) -> None:
        """Have a message sent after those posted before, at once if nothing is in its way.

        What waits is in a journal as well, which bounds it.
        """
        if self._failure is None and not (self._outbox.is_idle and self._send_now(message)):
            self._outbox.post(message)

    async def send_posted(self) -> None:
        """Send what is posted, until the hop is given up."""
        await self._outbox.run(self._send)

    async def ping(self) -> None:
        """Ask for a pong."""
        await self._send(self.claims.ping(trio.current_time()))

    def fail(self, reason: str, kind: Fault = "lost") -> None:
        """Mark the hop dead and end its stream, so that whoever waits on it goes on. Never blocks."""
        if self._failure is None:
            self._failure, self.fault = reason, kind
        self.channel.stream.reset()
        self._outbox.close()

    async def close(self) -> None:
        """Say that the session is over, and free the stream."""
        if self._failure is None:
            await self._send(Close())
            await self.channel.stream.aclose()

    def _send_now(self, message: Message) -> bool:
        sent = self.channel.send_now(message)
        if sent:
            self._note_sent(message)
        return sent

    def _note_sent(self, message: Message) -> None:
        if isinstance(message, Step):
            self.claims.sent = max(self.claims.sent, message.number + 1)

    async def _send(self, message: Message) -> None:
        self._note_sent(message)
        try:
            await self.channel.send(message)
        except PeerUnavailable:
            return  # whoever reads the stream hears of its end too, and says what follows from it
        except LocalProtocolError:
            if self._failure is None:  # else the stream closed while this waited its turn
                raise


async def open_hop(transport: Transport, planned: Hop, request: Open, hidden_size: int) -> HopStream:
    """Open a session at one hop.

    Raises: Busy, when it refuses for now; NotForked; Unreachable, TimedOut or Lost; Malformed, when it refuses what
    it announces or answers nonsense.
    """
    answer_s = limits.OPEN_TIMEOUT_S if request.fork is None else FORK_TIMEOUT_S
    within_s = limits.LINK_TIMEOUT_S + answer_s
    with trio.move_on_after(within_s):
        stream = await transport.open_stream(planned.peer, planned.addrs, SESSION_PROTOCOL)
        try:
            channel = Channel(stream, state=StreamState(Side.OPENER), frame_limit=FRAME_EXTRA_BYTES)
            await channel.send(request)
            with trio.move_on_after(answer_s):
                opened = _check_opened(await channel.receive(), planned, is_fork=request.fork is not None)
                return HopStream(planned, request, hidden_size, opened, channel)
        except BaseException:
            stream.reset()
            raise
        stream.reset()
        raise TimedOut(f"no answer within {answer_s:g} s")
    raise TimedOut(f"no session within {within_s:g} s")


async def open_each(open_one: Callable[[int], Awaitable[None]], opened: Sequence[HopStream | None]) -> None:
    """Call `open_one` with each place in `opened`, all at once; where that is given up, so is what it put there."""
    try:
        async with trio.open_nursery() as nursery:
            for index in range(len(opened)):
                nursery.start_soon(open_one, index)
    except BaseException:
        for hop in opened:
            if hop is not None:
                hop.fail("not needed")
        raise


def _check_opened(reply: Message | None, planned: Hop, *, is_fork: bool) -> Opened:
    match reply:
        case Opened(dtype=dtype, numerics=numerics):
            if planned.numerics not in (None, numerics):  # begun anew since we heard of it, as its owner may
                raise Lost(f"computes in {numerics} now, no longer in {planned.numerics}")
            if planned.dtype not in ("", dtype):
                raise Malformed(f"computes in {dtype} and announces {planned.dtype}")
            return reply
        case None:
            raise Lost("closed the stream when asked to serve")
        case Refused(code="fork", reason=reason) if is_fork:
            raise NotForked(quoted(reason))
        case Refused(code="model" | "span" | "fork", reason=reason):
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
