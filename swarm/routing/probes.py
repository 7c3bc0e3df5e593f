"""Asking peers for their maps: in rounds that hold nobody up for long, in the background after that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocol.book import RecordBook
from protocol.clock import SwarmClock
from protocol.errors import PeerUnavailable, RemoteProtocolError
from protocol.talk.exchange import meet, take_records
from protocol.transport.base import PeerAddrs, Transport
from swarm.routing.bans import Bans

# Peers asked at once; bounds sockets and wake-ups in a swarm of thousands.
PROBES_AT_ONCE: Final = 32
# How long a round of probes may hold up its caller; who answers later is noted in the background.
PROBE_ROUND_S: Final = 1.0
# An answer is no longer remembered as one of late.
HEARD_LATELY_S: Final = 10.0


class Probes:
    """Of one client. How they went is noted in the book, in the bans, in `clock` and in `rtt_ms`."""

    def __init__(self, transport: Transport, nursery: trio.Nursery, book: RecordBook, bans: Bans) -> None:
        self.rtt_ms: dict[str, float] = {}  # of those that answered when they were asked last
        self.clock = SwarmClock()
        self._transport = transport
        self._nursery = nursery
        self._book = book
        self._bans = bans
        self._limiter = trio.CapacityLimiter(PROBES_AT_ONCE)
        self._asking: dict[str, float] = {}  # peer -> since when
        self._heard_at: dict[str, float] = {}  # of those that answered lately
        self._answer = trio.Event()  # when one of them has answered, or failed to

    def now(self) -> float:
        """What time it is in the swarm, in seconds since the Unix epoch."""
        return time.time() + self.clock.offset_s

    async def round(
        self, peers: Sequence[PeerAddrs], enough: Callable[[], bool] = lambda: False, lately_s: float = 0.0
    ) -> None:
        """Ask these peers, and wait for whoever is asked now, until there is `enough`.

        Not those that have answered within `lately_s`, and failed in nothing since.
        """
        began = trio.current_time()
        for peer in peers:
            if self._heard_at.get(peer.peer, -math.inf) > began - lately_s and not self._bans.is_down(
                peer.peer, began
            ):
                continue
            asked_at = self._asking.get(peer.peer, float("-inf"))
            # One that was silent for a whole round may have come back meanwhile: its old dial would not notice.
            if peer.peer != self._transport.peer and asked_at <= began - PROBE_ROUND_S:
                self._asking[peer.peer] = began
                self._nursery.start_soon(self._ask, peer)
        with trio.move_on_after(PROBE_ROUND_S):
            while self._asking and not enough():
                await self._answer.wait()
            with trio.move_on_after(trio.current_time() - began):
                while self._asking:
                    await self._answer.wait()

    async def _ask(self, peer: PeerAddrs) -> None:
        try:
            async with self._limiter:
                await self.probe(peer)
        except (PeerUnavailable, RemoteProtocolError) as error:
            self.rtt_ms.pop(peer.peer, None)
            now, honest = trio.current_time(), isinstance(error, PeerUnavailable)
            if honest or not self._bans.banned(peer.peer, now):  # to break the rules twice in a ban is once
                self._bans.ban(peer.peer, now, honest=honest)
        self._asking.pop(peer.peer, None)
        self._answer.set()
        self._answer = trio.Event()

    async def probe(self, peer: PeerAddrs) -> None:
        """Exchange maps with one peer. Raises: PeerUnavailable, RemoteProtocolError."""
        met = await meet(self._transport, peer)
        issued = met.issued()
        if issued is not None:
            self.clock.heard(met.peer, issued, time.time())
        now = trio.current_time()
        for record in await take_records(self._book, met.records, met.source, self.now):
            self._bans.renewed(record.peer, now - (self.now() - record.announcement.issued), now)
        self._book.prove(met.peer, *met.places)
        self.rtt_ms[peer.peer] = min(1000 * met.rtt_s, self.rtt_ms.get(peer.peer, float("inf")))
        if issued is not None:  # a node that has just started has yet to say what it serves
            self._bans.answered(peer.peer, now)
            self._heard_at = {known: at for known, at in self._heard_at.items() if at > now - HEARD_LATELY_S}
            self._heard_at[peer.peer] = now
