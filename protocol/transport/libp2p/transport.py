"""The transport over QUIC and libp2p: who is dialled when, and which stream goes to whom."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from protocol.errors import (
    ConfigError,
    LocalProtocolError,
    Lost,
    Malformed,
    PeerUnavailable,
    TimedOut,
    Unreachable,
)
from protocol.transport.addresses import Address, parse_address
from protocol.transport.base import Handler, Stream
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

    def place_of(self, peer: str) -> str | None:
        """Where the packets of `peer` come from now, or None."""
        connection = self._endpoint.connection(peer)
        addr = connection.addr if connection is not None else None
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
        peer = parse_address(addr).peer
        if peer is None:
            raise ConfigError(f"malformed address {addr!r}: it must end in /p2p/<peer id>")
        await self.connection(peer, [addr])
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

    async def connection(self, peer: str, addrs: Sequence[str]) -> Connection:
        """The connection to `peer`, made if there is none. Raises: Unreachable, TimedOut."""
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
                dial = self._start_dial(peer, tuple(addrs))
            await dial.wait()
            if dial.error is not None and not shared:
                raise type(dial.error)(str(dial.error))
            # A dial begun by somebody else may have tried other addresses: if it failed, ours are tried.

    # --- dialling

    def _start_dial(self, peer: str, addrs: tuple[str, ...]) -> _Dial:
        if len(self._dials) >= MAX_DIALS:
            oldest = next(iter(self._dials))
            self._dials.pop(oldest).scope.cancel()
        dial = self._dials[peer] = _Dial()
        self._nursery.start_soon(self._run_dial, dial, peer, addrs)
        return dial

    async def _run_dial(self, dial: _Dial, peer: str, addrs: tuple[str, ...]) -> None:
        dial.error = TimedOut(f"peer {peer} did not answer before others had to be dialled")
        try:
            with dial.scope:
                await self._dial_all(peer, addrs)
                dial.error = None
        except PeerUnavailable as error:
            dial.error = error
        finally:
            if self._dials.get(peer) is dial:
                del self._dials[peer]
            dial.done.set()

    async def _dial_all(self, peer: str, addrs: tuple[str, ...]) -> None:
        """Dial all addresses at once until one answers. Raises: Unreachable, TimedOut."""
        errors: list[PeerUnavailable] = []
        with trio.move_on_after(DIAL_TIMEOUT_S) as deadline:
            targets = await _resolve(addrs)
            if not targets:
                raise Unreachable(f"no address of peer {peer} is known")
            async with trio.open_nursery() as nursery:

                async def dial_one(host: str, port: int) -> None:
                    try:
                        await self._endpoint.dial(host, port, peer)
                        nursery.cancel_scope.cancel()
                    except PeerUnavailable as error:
                        errors.append(error)

                for host, port in targets:
                    nursery.start_soon(dial_one, host, port)
        if self._endpoint.connection(peer) is not None:
            return
        if deadline.cancelled_caught or any(isinstance(error, TimedOut) for error in errors):
            raise TimedOut(f"peer {peer} did not answer within {DIAL_TIMEOUT_S:g} s")
        reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
        raise Unreachable(f"peer {peer} cannot be reached: {reasons}")

    # --- accepting

    def _on_connection(self, connection: Connection) -> None:
        assert self._host is not None
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


async def _resolve(addrs: Sequence[str]) -> list[tuple[str, int]]:
    """IP addresses and ports of those of `addrs` that are well-formed and resolve."""
    targets: dict[tuple[str, int], None] = {}
    for text in addrs[:MAX_DIAL_ADDRS]:
        try:
            address = parse_address(text)
        except ConfigError as error:
            logger.debug("skipped: %s", error)
            continue
        if address.port == 0:
            continue
        hosts = await _lookup(address) if address.is_name else [address.host]
        targets.update(dict.fromkeys((host, address.port) for host in hosts))
    return list(targets)[:MAX_DIAL_ADDRS]


async def _lookup(address: Address) -> list[str]:
    family = {"dns4": trio.socket.AF_INET, "dns6": trio.socket.AF_INET6}.get(address.kind, 0)
    try:
        answers = await trio.socket.getaddrinfo(
            address.host, address.port, family=family, type=trio.socket.SOCK_DGRAM
        )
    except OSError as error:
        logger.debug("%s does not resolve: %s", address.host, error)
        return []
    return [str(answer[4][0]) for answer in answers]
