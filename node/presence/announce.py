"""What this node says of itself, what it has heard of others, and handing both out."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from protocol import limits
from protocol.book import RecordBook
from protocol.clock import SwarmClock
from protocol.codec import encode
from protocol.errors import Busy
from protocol.identity import Identity
from protocol.messages import MAP_PROTOCOL, MapReply, MapRequest
from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import Announcement, Record, RoundTrip, sign_record
from protocol.strangers import Source
from protocol.talk.channel import Channel
from protocol.talk.exchange import Meeting, take_records
from protocol.transport.allowance import Allowance, PeerAllowance
from protocol.transport.base import Stream, Transport
from protocol.transport.slots import Slots

logger = logging.getLogger(__name__)

# A peer exchanges maps every few seconds at most; a client asks once or twice as it starts.
MAPS_BURST = 20
MAPS_PER_S = 1.0
# Bytes of maps for one origin: those of 1,000 nodes are 1 MiB and cost 40 ms to send. 16 of them at once, then 2 each
# second, 8 % of a core; while a swarm is small, thousands.
MAP_BYTES_BURST = 16 * limits.MIB
MAP_BYTES_PER_S = 2 * limits.MIB
# Peers whose request is on its way, of `limits.MAP_REQUEST_BYTES` at most: 32 MiB.
MAPS_ASKED = 128
# Peers that are being answered: beside the one map that they share, each holds the records it brought.
MAPS_ANSWERED = 16
# A map is made anew after this; where there is news sooner, but no faster than so many bytes in a second: the
# largest, which takes 25 ms, each quarter of one. A small map is as good as always new.
MAP_FRESH_S = 1.0
MAP_NEWS_BYTES_PER_S = 16 * limits.MIB
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
    numerics: Numerics
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
        self._allowance = PeerAllowance(MAPS_PER_S, MAPS_BURST)
        self._bytes = Allowance(MAP_BYTES_PER_S, MAP_BYTES_BURST)
        self._asked = Slots(MAPS_ASKED)
        self._answered = Slots(MAPS_ANSWERED)
        self._reply = b""
        self._reply_at = float("-inf")
        self._has_news = False  # since the reply was made

    def clock(self) -> float:
        """What time it is in the swarm, in seconds since the Unix epoch."""
        return self._machine_clock() + self._swarm_clock.offset_s

    def complaint(self) -> str:
        """One line on whose clock is wrong; empty if nobody's is."""
        return self._swarm_clock.complaint()

    def serve(self) -> None:
        """Answer map requests from now on."""
        self._transport.serve(MAP_PROTOCOL, self.handle)

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
            numerics=served.numerics,
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
        self._has_news = True
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
        self._prove(meeting.peer, *meeting.places)
        self._measured(meeting.peer, meeting.rtt_s)

    async def take(self, records: Sequence[bytes], source: Source) -> list[Record]:
        """Check records that `source` handed over and keep what is new; the new ones.

        Other tasks run in between.
        Raises: Malformed, if too many of them are no records.
        """
        fresh = await take_records(self.book, records, source, self.clock, REFUSED_RECORDS)
        self._has_news |= bool(fresh)
        self._keep_last_word(fresh)
        return fresh

    async def handle(self, stream: Stream) -> None:
        """One request: the map goes out, then what the peer has brought is taken in.

        Raises: Busy, if the peer asks too often; PeerUnavailable; RemoteProtocolError.
        """
        now = trio.current_time()
        if not self._allowance.take(stream.origin, stream.peer, now):
            raise Busy(f"{stream.peer} asks for the map too often")
        async with Channel(stream, frame_limit=limits.MAP_REQUEST_BYTES) as channel:
            with self._asked.taken(stream):
                request = await channel.expect(MapRequest, limits.FIRST_MESSAGE_TIMEOUT_S)
            reply = self._encoded(trio.current_time())
            if not self._bytes.take(stream.origin, trio.current_time(), len(reply)):
                raise Busy(f"{stream.origin} asks for the map too often")
            with self._answered.taken(stream) as slot:
                stream.keep()
                await slot.send(stream, reply, limits.CONTROL_TIMEOUT_S)
                await self.take(request.records, Source(stream.peer, stream.origin, asked=False))
                place = self._transport.place_of(stream.peer)
                if place is not None:  # who dials from where it listens is met there
                    self._prove(stream.peer, place)

    def _encoded(self, now: float) -> bytes:
        """The map as it is sent, made once for all who ask within a moment."""
        news_after_s = len(self._reply) / MAP_NEWS_BYTES_PER_S
        if now - self._reply_at >= (news_after_s if self._has_news else MAP_FRESH_S):
            self._reply = encode(MapReply(self.page()))
            self._reply_at = now
            self._has_news = False
        return self._reply

    def _prove(self, peer: str, *places: str) -> None:
        known = self.book.is_proven(peer)
        self.book.prove(peer, *places)
        self._has_news |= self.book.is_proven(peer) != known

    def _measured(self, peer: str, rtt_s: float) -> None:
        rtt_ms = min(rtt_s * 1e3, 60_000.0)
        known = self._rtt_ms.pop(peer, rtt_ms)
        self._rtt_ms[peer] = known + RTT_WEIGHT * (rtt_ms - known)
        while len(self._rtt_ms) > limits.KNOWN_RECORDS:
            del self._rtt_ms[next(iter(self._rtt_ms))]

    def _links(self, digest: bytes, now: float) -> tuple[RoundTrip, ...]:
        """The nearest of the nodes of our model, then the nearest others."""
        digests = {said.peer: said.digest for said in self.book.met(now)}
        known = [peer for peer in self._rtt_ms if peer in digests]
        known.sort(key=lambda peer: (digests[peer] != digest, self._rtt_ms[peer]))
        return tuple(RoundTrip(peer, self._rtt_ms[peer]) for peer in known[: limits.LINKS])

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
