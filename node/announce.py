"""What this node says of itself, what it has heard of others, and handing both out."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from node.serving import Allowance, guarded
from protocol import limits
from protocol.book import RecordBook, Source
from protocol.clock import SwarmClock
from protocol.errors import Busy, Malformed
from protocol.identity import Identity
from protocol.messages import MAP_PROTOCOL, MapReply, MapRequest
from protocol.model import Span
from protocol.records import Announcement, Link, Record, sign_record
from protocol.transport.base import Stream, Transport
from protocol.transport.channel import Channel
from protocol.transport.exchange import Meeting

logger = logging.getLogger(__name__)

# A peer exchanges maps every few seconds at most; a client asks once or twice as it starts.
MAPS_BURST = 20
MAPS_PER_S = 1.0
# Map exchanges answered at once; each may hold two map frames.
MAPS = 32
# Records checked before other tasks have their turn: 32 signatures take about 5 ms.
CHECKED_AT_ONCE = 32
# After this many records that are no records, a peer is not listened to any further.
REFUSED_RECORDS = 64
# Of a new round-trip time, in the running mean.
RTT_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Served:
    """What a node serves for as long as it runs."""

    model: str  # display name
    digest: bytes
    blocks: int
    hidden_size: int
    span: Span
    dtype: str
    weights: tuple[bytes, ...]  # one digest per stage


@dataclass(frozen=True, slots=True)
class Load:
    """How fast and how busy a node is now; see `protocol.records.Announcement`."""

    decode_ms: float = 0.0
    prefill_ms: float = 0.0
    head_ms: float = 0.0
    queue_ms: float = 0.0
    kv_tokens: int = 0
    kv_tokens_total: int = 0


class Announcer:
    """Signs this node's announcements, keeps the book of everybody's, and answers who asks for it.

    `clock` gives seconds since the Unix epoch, as far as this machine knows.
    """

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        *,
        rng: random.Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.book = RecordBook()
        self.book.vouch(identity.peer)
        self.own: Record | None = None
        self._machine_clock = clock
        self._swarm_clock = SwarmClock()
        self._identity = identity
        self._transport = transport
        self._rng = rng
        self._sequence = 0
        self._rtt_ms: dict[str, float] = {}
        self._allowance = Allowance(MAPS_PER_S, MAPS_BURST)
        self._answering = 0

    def clock(self) -> float:
        """What time it is in the swarm, in seconds since the Unix epoch."""
        return self._machine_clock() + self._swarm_clock.offset_s

    def complaint(self) -> str:
        """One line on whose clock is wrong; empty if nobody's is."""
        return self._swarm_clock.complaint()

    def serve(self) -> None:
        """Answer map requests from now on."""
        self._transport.serve(MAP_PROTOCOL, guarded(self.handle))

    def announce(self, served: Served, load: Load, state: str) -> Record:
        """Say it anew, with a higher sequence number than ever before; the record is in the book."""
        now = self.clock()
        self._sequence = max(int(now * 1e6), self._sequence + 1)
        said = Announcement(
            peer=self._identity.peer,
            addrs=self._transport.addrs[: limits.ADDRESSES],
            model=served.model,
            digest=served.digest,
            blocks=served.blocks,
            hidden_size=served.hidden_size,
            span=served.span,
            dtype=served.dtype,
            weights=served.weights,
            state=state,
            decode_ms=load.decode_ms,
            prefill_ms=load.prefill_ms,
            head_ms=load.head_ms,
            queue_ms=load.queue_ms,
            kv_tokens=load.kv_tokens,
            kv_tokens_total=load.kv_tokens_total,
            links=self._links(served.digest, now),
            sequence=self._sequence,
            issued=now,
            expires=now + limits.RECORD_LIFE_S,
        )
        self.own = sign_record(self._identity, said)
        self.book.add(self.own, now)
        return self.own

    def others(self) -> list[Announcement]:
        """What peers other than this one say, who were met where they say they are and have not gone."""
        return [said for said in self.book.met(self.clock()) if said.peer != self._identity.peer]

    def page(self) -> tuple[bytes, ...]:
        """The valid records as one map message holds them, our own first.

        What others still hold of an earlier run of this node is not handed on: it does not hold any more.
        """
        own = (self.own.data,) if self.own is not None else ()
        return (*own, *self.book.pack(self.clock(), self._rng, self._identity.peer))

    def news(self) -> tuple[bytes, ...]:
        """What others are told when they are asked for their maps, our own record first."""
        own = (self.own.data,) if self.own is not None else ()
        return (*own, *self.book.news(self.clock(), self._identity.peer))

    async def met(self, meeting: Meeting) -> None:
        """Take in what an exchange of maps showed. Raises: Malformed, if too many of the records are none."""
        issued = meeting.issued()
        if issued is not None:
            self._swarm_clock.heard(meeting.peer, issued, self._machine_clock())
        await self.take(meeting.records, meeting.source)
        self.book.prove(meeting.peer, *meeting.places)
        self._measured(meeting.peer, meeting.rtt_s)

    async def take(self, records: Sequence[bytes], source: Source) -> list[Record]:
        """Check records that `source` handed over and keep what is new; the new ones.

        Other tasks run in between.
        Raises: Malformed, if too many of them are no records.
        """
        fresh: list[Record] = []
        refused = 0
        for start in range(0, len(records), CHECKED_AT_ONCE):
            new, bad = self.book.merge(records[start : start + CHECKED_AT_ONCE], self.clock(), source)
            fresh += new
            refused += bad
            if refused > REFUSED_RECORDS:
                raise Malformed(f"{refused} of {len(records)} records do not hold")
            await trio.lowlevel.checkpoint()
        self._keep_last_word(fresh)
        return fresh

    async def handle(self, stream: Stream) -> None:
        """One request: the map goes out, then what the peer has brought is taken in.

        Raises: Busy, if the peer asks too often; PeerUnavailable; RemoteProtocolError.
        """
        if self._answering >= MAPS or not self._allowance.take(stream.peer, trio.current_time()):
            raise Busy(f"{stream.peer} asks for the map too often")
        self._answering += 1
        try:
            async with Channel(stream, frame_limit=limits.MAP_REQUEST_BYTES) as channel:
                request = await channel.expect(MapRequest, limits.FIRST_MESSAGE_TIMEOUT_S)
                with trio.fail_after(limits.CONTROL_TIMEOUT_S):
                    await channel.send(MapReply(self.page()))
                await self.take(request.records, Source(stream.peer, stream.origin, asked=False))
                place = self._transport.place_of(stream.peer)
                if place is not None:  # who dials from where it listens is met there
                    self.book.prove(stream.peer, place)
        except trio.TooSlowError:
            raise Busy(f"{stream.peer} does not read the map it asked for") from None
        finally:
            self._answering -= 1

    def _measured(self, peer: str, rtt_s: float) -> None:
        rtt_ms = min(rtt_s * 1e3, 60_000.0)
        known = self._rtt_ms.pop(peer, rtt_ms)
        self._rtt_ms[peer] = known + RTT_WEIGHT * (rtt_ms - known)
        while len(self._rtt_ms) > limits.KNOWN_RECORDS:
            del self._rtt_ms[next(iter(self._rtt_ms))]

    def _links(self, digest: bytes, now: float) -> tuple[Link, ...]:
        """The nearest of the nodes of our model, then the nearest others."""
        digests = {said.peer: said.digest for said in self.book.met(now)}
        known = [peer for peer in self._rtt_ms if peer in digests]
        known.sort(key=lambda peer: (digests[peer] != digest, self._rtt_ms[peer]))
        return tuple(Link(peer, self._rtt_ms[peer]) for peer in known[: limits.LINKS])

    def _keep_last_word(self, fresh: list[Record]) -> None:
        """Others may hold a later statement of ours, from before this machine's clock was set back."""
        for record in fresh:
            if record.peer == self._identity.peer:
                self._sequence = max(self._sequence, record.announcement.sequence)
                if self.own is not None:
                    logger.info("an earlier run of this node said more recent things; they are superseded")


def disagreeing(served: Served, others: Sequence[Announcement]) -> list[str]:
    """Peers that serve one of our stages of our model from other weights."""
    ours = dict(zip(served.span, served.weights, strict=True))
    return [
        said.peer
        for said in others
        if said.digest == served.digest
        and any(
            ours.get(stage, digest) != digest for stage, digest in zip(said.span, said.weights, strict=True)
        )
    ]
