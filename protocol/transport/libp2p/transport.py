"""The transport over QUIC and libp2p: who is dialled when, and which stream goes to whom."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from protocol.errors import (
    LocalProtocolError,
    Lost,
    Malformed,
    PeerUnavailable,
    TimedOut,
    Unreachable,
)
from protocol.transport.addresses import Address, peer_at
from protocol.transport.base import Handler, Stream
from protocol.transport.dialling import (
    REFUSED_DATAGRAMS,
    SILENT_DATAGRAMS,
    Budget,
    Verdict,
    dialable_places,
    is_dialable,
)
from protocol.transport.libp2p.dht import KadDht
from protocol.transport.libp2p.host import Host
from protocol.transport.libp2p.multistream import (
    HEADER,
    NEGOTIATION_FAILED,
    NOT_AVAILABLE,
    LineReader,
    encode_line,
)
from protocol.transport.libp2p.streams import AcceptedStream, OpenedStream
from protocol.transport.limits import (
    DIAL_TIMEOUT_S,
    MAX_DIAL_ADDRS,
    MAX_DIALS,
    MAX_PROPOSALS_PER_STREAM,
    NEGOTIATION_TIMEOUT_S,
)
from protocol.transport.quic.connection import Connection
from protocol.transport.quic.endpoint import Endpoint
from protocol.transport.quic.stream import QuicStream
from protocol.transport.serving import open_to_self, run_handler

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Dial:
    """One attempt to reach a peer, shared by all who want it; it ends with the last of them."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: PeerUnavailable | None = None
        self.scope = trio.CancelScope()
        self.waiting = 0

    async def wait(self) -> None:
        """Wait for the outcome."""
        self.waiting += 1
        try:
            await self.done.wait()
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.scope.cancel()


class Libp2pTransport:
    """See `protocol.transport.base.Transport`; made by `open_transport`."""

    def __init__(self, endpoint: Endpoint, nursery: trio.Nursery, addrs: tuple[str, ...]) -> None:
        self._endpoint = endpoint
        self._nursery = nursery
        self._addrs = addrs
        self._handlers: dict[str, Handler] = {}
        self._dials: dict[str, _Dial] = {}
        self._budget = Budget()
        self._dial_ended = trio.Event()
        self._host: Host | None = None
        self._dht: KadDht | None = None

    @property
    def peer(self) -> str:
        """This peer's own id."""
        return self._endpoint.peer

    @property
    def addrs(self) -> tuple[str, ...]:
        """Where others can dial it."""
        return self._addrs

    @property
    def dht(self) -> KadDht:
        """The Kademlia DHT this peer takes part in."""
        assert self._dht is not None
        return self._dht

    def statistics(self) -> dict[str, int]:
        """How many connections there are, and what has passed since the start."""
        return {**self._endpoint.statistics(), **self._endpoint.traffic()}

    def place_of(self, peer: str) -> str | None:
        """Where `peer` has shown that it receives now, or None."""
        connection = self._endpoint.connection(peer)
        addr = connection.proven_addr if connection is not None else None
        return None if addr is None else str(Address.of(addr[0], addr[1], peer))

    def attach(self, host: Host, dht: KadDht) -> None:
        """Begin: from now on every connection is the host's too."""
        self._host = host
        self._dht = dht
        self._endpoint.on_connection = self._on_connection

    def serve(self, protocol: str, handler: Handler) -> None:
        """Call `handler` for each incoming stream of `protocol`."""
        self._handlers[protocol] = handler

    async def connect(self, addr: str) -> str:
        """Connect to the peer at `addr`, let the DHT know it, and return its id."""
        peer = peer_at(addr)
        await self.connection(peer, [addr], ours=True)
        self.dht.learn(peer, [addr])
        if await self.dht.try_node(peer):
            self._nursery.start_soon(self.dht.find_neighbours)
        return peer

    async def open_stream(self, peer: str, addrs: Sequence[str], protocol: str) -> Stream:
        """Open a stream of `protocol`; a peer that does not speak it refuses with its first answer."""
        if peer == self.peer:
            return open_to_self(peer, self._handlers, protocol, self._nursery)
        connection = await self.connection(peer, addrs)
        try:
            stream = await connection.open_stream()
        except Lost:
            connection = await self.connection(peer, addrs)  # it ended just now: once more, from the start
            stream = await connection.open_stream()
        return OpenedStream(stream, protocol)

    async def connection(self, peer: str, addrs: Sequence[str], *, ours: bool = False) -> Connection:
        """The connection to `peer`, made if there is none.

        Addresses that are `ours`, from this peer's own user, are dialled all at once. Others are what strangers say
        of it: unless it was met there, they are tried one after another, as far as the budget goes.
        Raises: Unreachable, TimedOut.
        """
        if peer == self.peer:
            raise LocalProtocolError("a peer does not dial itself")
        while True:
            known = self._endpoint.connection(peer)
            if known is not None:
                await trio.lowlevel.checkpoint()
                return known
            dial = self._dials.get(peer)
            shared = dial is not None
            if dial is None:
                dial = self._start_dial(peer, tuple(addrs), ours)
            await dial.wait()
            if dial.error is not None and not shared:
                raise type(dial.error)(str(dial.error))
            # A dial begun by somebody else may have tried other addresses: if it failed, ours are tried.

    # --- dialling

    def _start_dial(self, peer: str, addrs: tuple[str, ...], ours: bool) -> _Dial:
        if len(self._dials) >= MAX_DIALS:
            oldest = next(iter(self._dials))
            self._dials.pop(oldest).scope.cancel()
        dial = self._dials[peer] = _Dial()
        self._nursery.start_soon(self._run_dial, dial, peer, addrs, ours)
        return dial

    async def _run_dial(self, dial: _Dial, peer: str, addrs: tuple[str, ...], ours: bool) -> None:
        dial.error = TimedOut(f"peer {peer} did not answer before others had to be dialled")
        try:
            with dial.scope:
                await self._dial_all(peer, addrs, ours)
                dial.error = None
        except PeerUnavailable as error:
            dial.error = error
        finally:
            if self._dials.get(peer) is dial:
                del self._dials[peer]
            dial.done.set()

    async def _dial_all(self, peer: str, addrs: tuple[str, ...], ours: bool) -> None:
        """Dial until one address answers: those where `peer` was met (or `ours`) all at once, others in turn.

        Raises: Unreachable, TimedOut.
        """
        places = dialable_places(addrs)
        if not places:
            raise Unreachable(f"no address of peer {peer} is known")
        errors: list[PeerUnavailable] = []
        with trio.move_on_after(DIAL_TIMEOUT_S) as deadline:
            async with trio.open_nursery() as nursery:

                async def attempt(dial: Callable[[Address, str], Awaitable[None]], place: Address) -> None:
                    try:
                        await dial(place, peer)
                        nursery.cancel_scope.cancel()
                    except PeerUnavailable as error:
                        errors.append(error)

                async def in_turn(hints: Sequence[Address]) -> None:
                    for place in hints:
                        await attempt(self._dial_hint, place)

                known = [p for p in places if ours or self._budget.met(peer, p.host, p.port)]
                for place in known:
                    nursery.start_soon(attempt, self._dial_known, place)
                nursery.start_soon(in_turn, [place for place in places if place not in known])
        if self._endpoint.connection(peer) is not None:
            return
        if deadline.cancelled_caught or any(isinstance(error, TimedOut) for error in errors):
            raise TimedOut(f"peer {peer} did not answer in time")
        reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
        raise Unreachable(f"peer {peer} cannot be reached: {reasons}")

    async def _dial_known(self, place: Address, peer: str) -> None:
        """Dial a place that we have reason to believe in. Raises: Unreachable, TimedOut."""
        errors: list[PeerUnavailable] = []
        async with trio.open_nursery() as nursery:

            async def dial_one(host: str) -> None:
                try:
                    await self._endpoint.dial(host, place.port, peer)
                    nursery.cancel_scope.cancel()
                except PeerUnavailable as error:
                    errors.append(error)

            for host in await _hosts(place):
                nursery.start_soon(dial_one, host)
        if self._endpoint.connection(peer) is None:
            raise errors[0]

    async def _dial_hint(self, place: Address, peer: str) -> None:
        """Dial a place that a stranger named, and where its name leads. Raises: Unreachable, TimedOut."""
        hosts = [place.host]
        if place.is_name:
            hosts = await self._spend(place.host, place.port, partial(_hosts, place))
        errors: list[PeerUnavailable] = []
        for host in hosts:
            dial = partial(self._endpoint.dial, host, place.port, peer)
            try:
                if self._budget.met(peer, host, place.port):
                    await dial()
                else:
                    await self._spend(host, place.port, partial(dial, hint=True))
                return
            except PeerUnavailable as error:
                errors.append(error)
        raise errors[-1]

    async def _spend(self, host: str, port: int, dial: Callable[[], Awaitable[T]]) -> T:
        """Run `dial` as the budget allows. Raises: Unreachable, where it does not; what `dial` raises."""
        while (verdict := self._budget.begin(host, port, trio.current_time())) is Verdict.LATER:
            await self._dial_ended.wait()
        if verdict is Verdict.NEVER:
            raise Unreachable(f"too much that was sent to {host} went unanswered")
        unanswered = SILENT_DATAGRAMS
        try:
            found = await dial()
            unanswered = 0
            return found
        except Unreachable:
            unanswered = REFUSED_DATAGRAMS
            raise
        finally:
            self._budget.end(host, port, unanswered, trio.current_time())
            self._dial_ended.set()
            self._dial_ended = trio.Event()

    # --- accepting

    def _on_connection(self, connection: Connection) -> None:
        assert self._host is not None
        addr = connection.proven_addr
        if addr is not None:
            self._budget.meet(connection.peer, *addr[:2])
        self._nursery.start_soon(self._host.network.follow, connection)
        self._nursery.start_soon(self._accept_streams, connection)

    async def _accept_streams(self, connection: Connection) -> None:
        try:
            while True:
                stream = await connection.accept_stream()
                if not stream.is_closed:  # it may have given way already
                    self._nursery.start_soon(self._handle, connection, stream)
        except Lost:
            return

    async def _handle(self, connection: Connection, stream: QuicStream) -> None:
        assert self._host is not None
        try:
            with trio.fail_after(NEGOTIATION_TIMEOUT_S):
                protocol, rest = await self._agree(stream)
        except (Lost, Malformed, trio.TooSlowError) as error:
            logger.debug("a stream of %s ended before its protocol was agreed on: %s", stream.peer, error)
            stream.reset(NEGOTIATION_FAILED)
            return
        accepted = AcceptedStream(stream, rest)
        handler = self._handlers.get(protocol)
        if handler is not None:
            await run_handler(handler, accepted, protocol)
        else:
            await self._host.handle(connection, accepted, protocol)

    async def _agree(self, stream: QuicStream) -> tuple[str, bytes]:
        """The protocol that the opener and we speak, and what it sent beyond. Raises: Lost, Malformed."""
        assert self._host is not None
        lines = LineReader(stream)
        if await lines.line() != HEADER:
            raise Malformed("no multistream-select")
        answer = encode_line(HEADER)
        if not lines.rest:  # an opener that waits for our header before it proposes; ours do not
            await stream.send(answer)
            answer = b""
        for _ in range(MAX_PROPOSALS_PER_STREAM):
            wanted = await lines.line()
            if wanted in self._handlers or self._host.speaks(wanted):
                await stream.send(answer + encode_line(wanted))
                return wanted, lines.rest
            await stream.send(answer + encode_line(NOT_AVAILABLE))
            answer = b""
        raise Malformed("no protocol in common")


async def _hosts(place: Address) -> list[str]:
    """The IP addresses of a place that may be dialled, at least one. Raises: Unreachable."""
    if not place.is_name:
        return [place.host]
    family = {"dns4": trio.socket.AF_INET, "dns6": trio.socket.AF_INET6}.get(place.kind, 0)
    try:
        answers = await trio.socket.getaddrinfo(
            place.host, place.port, family=family, type=trio.socket.SOCK_DGRAM
        )
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{place.host} does not resolve: {error}") from None
    hosts = dict.fromkeys(str(answer[4][0]) for answer in answers)
    found = [host for host in hosts if is_dialable(host, place.port)][:MAX_DIAL_ADDRS]
    if not found:
        raise Unreachable(f"{place.host} stands for no address that may be dialled")
    return found
