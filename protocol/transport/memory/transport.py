"""One peer's transport in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from protocol.errors import (
    LocalProtocolError,
    Lost,
    PeerUnavailable,
    RemoteProtocolError,
    TimedOut,
    Unreachable,
)
from protocol.transport.addresses import Address, parse_address, peer_at
from protocol.transport.base import Handler, PeerAddrs, Stream
from protocol.transport.dialling import REFUSED_DATAGRAMS, SILENT_DATAGRAMS, Budget, Verdict, dialable_places
from protocol.transport.limits import DIAL_TIMEOUT_S, HINT_DIAL_TIMEOUT_S
from protocol.transport.memory.links import Links
from protocol.transport.memory.stream import Connection, MemoryStream
from protocol.transport.origin import origin_of
from protocol.transport.serving import open_to_self, run_handler
from protocol.transport.validator import DhtValidator

logger = logging.getLogger(__name__)

# A lookup asks nodes nearer and nearer to the key: two round trips are enough in a small swarm.
_DHT_ROUND_TRIPS = 2


class MemoryTransport:
    """See `protocol.transport.base.Transport`; made by `Network.transport`."""

    def __init__(
        self,
        links: Links,
        nursery: trio.Nursery,
        peer: str,
        addrs: tuple[str, ...],
        validate: DhtValidator,
    ) -> None:
        self._links = links
        self._nursery = nursery
        self._peer = peer
        self._addrs = addrs
        self._handlers: dict[str, Handler] = {}
        self._running: set[trio.CancelScope] = set()
        self._budget = Budget()
        self._dial_ended = trio.Event()
        self.alive = True
        self._dht = MemoryDht(self, links, validate)

    @property
    def peer(self) -> str:
        """This peer's id."""
        return self._peer

    @property
    def addrs(self) -> tuple[str, ...]:
        """Where others can dial it; empty if it only dials."""
        return self._addrs

    @property
    def dht(self) -> MemoryDht:
        """The network's hint store, as this peer sees it."""
        return self._dht

    @property
    def origin(self) -> str:
        """The block of addresses it is in."""
        return origin_of(parse_address(self._links.place(self._peer)).host)

    def place_of(self, peer: str) -> str | None:
        """Where `peer` is, if there is a connection."""
        connected = self._links.connection(self._peer, peer) is not None
        return self._links.place(peer) if connected else None

    def serve(self, protocol: str, handler: Handler) -> None:
        """Call `handler` for each incoming stream of `protocol`."""
        self._handlers[protocol] = handler

    async def connect(self, addr: str) -> str:
        """Connect to the peer at `addr`."""
        peer = peer_at(addr)
        await self._connection(peer, [addr], ours=True)
        return peer

    async def open_stream(self, peer: str, addrs: Sequence[str], protocol: str) -> Stream:
        """Open a stream of `protocol`; a peer that does not speak it refuses with the first answer."""
        if peer == self._peer:
            return open_to_self(peer, self._handlers, protocol, self._nursery)
        connection = await self._connection(peer, addrs)
        ours, theirs = connection.open(self._peer)
        other = self._links.living(peer)
        if other is not None:
            other.accept(theirs, protocol)
        return ours

    def accept(self, stream: MemoryStream, protocol: str) -> None:
        """Another peer has opened `stream`."""
        self._nursery.start_soon(self._handle, stream, protocol)

    def stop(self) -> None:
        """End what runs here, as death or leaving does."""
        self.alive = False
        for scope in list(self._running):
            scope.cancel()

    def watch(self, connection: Connection, idle_timeout_s: float) -> None:
        """Give `connection` up at this end unless its line heals within `idle_timeout_s`."""
        self._nursery.start_soon(self._watch, connection, idle_timeout_s)

    async def _watch(self, connection: Connection, idle_timeout_s: float) -> None:
        healed = connection.line.healed
        with trio.move_on_after(idle_timeout_s):
            await healed.wait()
        if not healed.is_set():
            self._links.drop(connection, "nothing was heard from the peer")

    async def _handle(self, stream: MemoryStream, protocol: str) -> None:
        with trio.CancelScope() as scope:
            self._running.add(scope)
            try:
                await stream.inbox.wait_arrived(stream.inbox.arrival())
                handler = self._handlers.get(protocol)
                if handler is None:
                    stream.refuse(Unreachable, f"peer {self._peer} does not speak {protocol}")
                else:
                    await run_handler(handler, stream, protocol)
            except PeerUnavailable:
                stream.reset()  # the opener was gone before the handler began
            finally:
                self._running.discard(scope)

    async def _connection(self, peer: str, addrs: Sequence[str], *, ours: bool = False) -> Connection:
        await trio.lowlevel.checkpoint()
        if not self.alive:
            raise Lost("this transport has ended")
        if peer == self._peer:
            raise LocalProtocolError("a peer does not dial itself")
        known = self._links.connection(self._peer, peer)
        return known if known is not None else await self._dial(peer, addrs, ours)

    def meet(self, peer: str) -> None:
        """A connection with `peer` has begun."""
        place = parse_address(self._links.place(peer))
        self._budget.meet(peer, place.host, place.port)

    async def _dial(self, peer: str, addrs: Sequence[str], ours: bool) -> Connection:
        places = dialable_places(addrs)
        known = [p for p in places if ours or self._budget.met(peer, p.host, p.port)]
        if known:
            return await self._reach(peer, [str(place) for place in known], DIAL_TIMEOUT_S)
        error: PeerUnavailable = Unreachable(f"nobody answers as {peer}: no address")
        with trio.move_on_after(DIAL_TIMEOUT_S):
            for place in places:
                try:
                    return await self._try(peer, place)
                except PeerUnavailable as failure:
                    error = failure
            raise error
        raise TimedOut(f"peer {peer} did not answer within {DIAL_TIMEOUT_S:g} s")

    async def _try(self, peer: str, place: Address) -> Connection:
        """Dial where a stranger says that `peer` listens, as the budget allows."""
        while (verdict := self._budget.begin(place.host, place.port, trio.current_time())) is Verdict.LATER:
            await self._dial_ended.wait()
        if verdict is Verdict.NEVER:
            raise Unreachable(f"too much that was sent to {place.host} went unanswered")
        unanswered = SILENT_DATAGRAMS
        try:
            connection = await self._reach(peer, [str(place)], HINT_DIAL_TIMEOUT_S)
            unanswered = 0
            return connection
        except Unreachable:
            unanswered = REFUSED_DATAGRAMS
            raise
        finally:
            self._budget.end(place.host, place.port, unanswered, trio.current_time())
            self._dial_ended.set()
            self._dial_ended = trio.Event()

    async def _reach(self, peer: str, addrs: Sequence[str], within_s: float) -> Connection:
        line = self._links.line(self._peer, peer)
        listens = any(self._links.listens(peer, addr) for addr in addrs)
        with trio.move_on_after(within_s):
            if listens or self._links.is_silent(peer):
                while line.blocked_since is not None:
                    await line.healed.wait()
            await trio.sleep(2 * line.latency_s)
            if not listens or self._links.living(peer) is None:
                raise Unreachable(f"nobody answers as {peer} at {', '.join(addrs) or 'no address'}")
            if not self.alive:
                raise Lost("this transport has ended")
            return self._links.connect(self, peer)
        raise TimedOut(f"peer {peer} did not answer within {within_s:g} s")


class MemoryDht:
    """The network's one table of hints, with a lookup's delay; nothing in it notices deaths."""

    def __init__(self, transport: MemoryTransport, links: Links, validate: DhtValidator) -> None:
        self._transport = transport
        self._links = links
        self._validate = validate

    async def provide(self, key: str) -> None:
        """Stand in the table under `key`."""
        if await self._lookup():
            entry = PeerAddrs(self._transport.peer, self._transport.addrs)
            self._links.provided.setdefault(key, {})[entry.peer] = entry

    async def providers(self, key: str, limit: int = 20) -> list[PeerAddrs]:
        """Who stands in the table under `key`, dead or alive."""
        found = self._links.provided.get(key, {}) if await self._lookup() else {}
        return [entry for peer, entry in found.items() if peer != self._transport.peer][:limit]

    async def put(self, key: str, value: bytes) -> None:
        """Store `value` unless what is there is newer. Raises: LocalProtocolError, if it is not valid."""
        try:
            self._validate.validate(key, value)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this value may not stand under {key!r}: {error}") from error
        if await self._lookup():
            there = self._links.stored.get(key)
            if there is None or self._validate.newer(value, there):
                self._links.stored[key] = value

    async def get(self, key: str) -> bytes | None:
        """What is stored under `key`, if it is (still) valid."""
        value = self._links.stored.get(key) if await self._lookup() else None
        if value is not None:
            try:
                self._validate.validate(key, value)
            except RemoteProtocolError as error:
                logger.info("invalid value under %r: %s", key, error)
                return None
        return value

    async def _lookup(self) -> bool:
        await trio.sleep(2 * _DHT_ROUND_TRIPS * self._links.latency_s)
        return self._transport.alive and not self._links.is_paused(self._transport.peer)
