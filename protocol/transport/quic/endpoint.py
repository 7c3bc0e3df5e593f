"""The endpoint: one UDP port that accepts and dials, and the table of connections behind it."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager

import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import TimedOut, Unreachable
from protocol.transport.background import background_tasks
from protocol.transport.crowd import Crowd
from protocol.transport.limits import (
    AMPLIFICATION,
    CONNECTION_WINDOW,
    COUNT_HELD_EVERY,
    DIAL_TIMEOUT_S,
    GOODBYES,
    HINT_DIAL_TIMEOUT_S,
    HINT_ROUND_TRIP_S,
    IDLE_TIMEOUT_S,
    KEEPALIVES_PER_IDLE_TIMEOUT,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_PEER,
    MAX_GOODBYES,
    MAX_HANDSHAKES,
    MAX_HELD_BYTES,
    MAX_UNUSED_STREAMS,
    STREAM_WINDOW,
)
from protocol.transport.origin import origin_of
from protocol.transport.peer_id import peer_id_of
from protocol.transport.quic.admission import Door, Verdict, too_much
from protocol.transport.quic.connection import Connection
from protocol.transport.quic.core import CID_BYTES, VERSIONS, QuicCore
from protocol.transport.quic.first_packet import Initial, parse_initial, retry, version_negotiation
from protocol.transport.quic.identity import ALPN, make_certificate
from protocol.transport.quic.mtu import CANDIDATES
from protocol.transport.quic.port import Batch, Port
from protocol.transport.quic.stream import QuicStream
from protocol.transport.quic.timers import Timers
from protocol.transport.quic.udp import Addr, SendError

logger = logging.getLogger(__name__)


class Endpoint:
    """Made by `open_endpoint`. `on_connection` hears of each verified connection, dialled or accepted."""

    def __init__(self, identity: Ed25519PrivateKey, idle_timeout_s: float, largest_datagram: int) -> None:
        self.peer = peer_id_of(identity.public_key())
        self.keepalive_s = idle_timeout_s / KEEPALIVES_PER_IDLE_TIMEOUT
        self.largest_datagram = largest_datagram
        self.accepting = False
        self.max_connections = MAX_CONNECTIONS
        self.on_connection: Callable[[Connection], None] = lambda connection: None
        self.ports: list[Port] = []
        self._certificate, self._key = make_certificate(identity)
        self._idle_timeout_s = idle_timeout_s
        self._nursery: trio.Nursery | None = None
        self._routes: dict[bytes, Connection] = {}
        self._connections: dict[Connection, None] = {}
        self._by_peer: dict[str, list[Connection]] = {}
        self._door = Door()
        self._shaking: Crowd[Connection] = Crowd()  # accepted, not yet verified
        self._idle: Crowd[Connection] = Crowd()  # verified, without a stream of use
        self._kept: Crowd[Connection] = Crowd()  # verified, with one
        self._unused_streams: Crowd[QuicStream] = Crowd()  # incoming, not of use yet
        self._passed_bytes = 0  # since what is held was counted
        self._tokens = QuicRetryTokenHandler()
        self._goodbyes: dict[bytes, list[bytes]] = {}
        self._timers: Timers[Connection] = Timers()
        self._sleeping_until = 0.0
        self._timer_changed = trio.Event()

    # --- for the user

    def connection(self, peer: str) -> Connection | None:
        """A connection to `peer`: the newest, as an older one may be to a process that is gone."""
        connections = self._by_peer.get(peer)
        return connections[-1] if connections else None

    def origin_of_peer(self, peer: str) -> str:
        """The origin of `peer` now; empty if there is no connection."""
        connection = self.connection(peer)
        return connection.origin if connection is not None else ""

    @property
    def connections(self) -> list[Connection]:
        """All connections, verified or still shaking hands."""
        return list(self._connections)

    def statistics(self) -> dict[str, int]:
        """How much the tables hold."""
        return {
            "connections": len(self._connections),
            "routes": len(self._routes),
            "peers": len(self._by_peer),
            "streams": sum(connection.open_streams for connection in self._connections),
        }

    def traffic(self) -> dict[str, int]:
        """What has passed through the ports that are open."""
        return {
            "bytes_sent": sum(port.sent.nbytes for port in self.ports),
            "bytes_received": sum(port.received.nbytes for port in self.ports),
            "datagrams_sent": sum(port.sent.datagrams for port in self.ports),
            "datagrams_received": sum(port.received.datagrams for port in self.ports),
        }

    def bind(self, host: str, port: int) -> Port:
        """Open a port. Raises: OSError, if it is taken."""
        assert self._nursery is not None
        opened = Port(host, port, self._on_batch)
        self.ports.append(opened)
        self._nursery.start_soon(opened.run)
        return opened

    async def dial(self, host: str, port: int, peer: str | None = None, *, hint: bool = False) -> Connection:
        """A verified connection to whoever is at an IP address, who must be `peer` if that is given.

        A `hint` is tried for a short time and with few datagrams. Raises: Unreachable, TimedOut.
        """
        connection = self._start_dial(host, port, peer, HINT_ROUND_TRIP_S if hint else None)
        try:
            with trio.fail_after(HINT_DIAL_TIMEOUT_S if hint else DIAL_TIMEOUT_S):
                await connection.wait_ready()
        except trio.TooSlowError:
            raise TimedOut(f"nobody answers at {host} port {port}") from None
        finally:
            if not connection.is_ready:
                connection.abandon()
        return connection

    # --- for connections

    def wake_at(self, connection: Connection, when: float) -> None:
        """Call its `on_timer` at `when`, or before that if it has said so."""
        self._timers.wish(connection, when)
        if self._timers.next_at < self._sleeping_until:
            self._timer_changed.set()

    def route(self, cid: bytes, connection: Connection) -> None:
        """Packets to `cid` are for `connection`."""
        self._routes[cid] = connection

    def unroute(self, cid: bytes) -> None:
        """`cid` is used no more."""
        self._routes.pop(cid, None)

    def connection_ready(self, connection: Connection) -> None:
        """The peer is verified."""
        self._shaking.leave(connection)
        known = self._by_peer.setdefault(connection.peer, [])
        known.append(connection)
        self._idle.enter(connection, connection.origin, connection.peer)
        self.on_connection(connection)
        if len(known) > MAX_CONNECTIONS_PER_PEER:
            known[0].close("replaced by a newer connection")
        while len(self._idle) + len(self._kept) > self.max_connections:
            # A half is for those without a stream of use: however many are of use, newcomers may show that they are.
            crowd = self._idle if len(self._idle) > self.max_connections // 2 else self._kept
            crowd.give_way().close("room for others")

    def connection_used(self, connection: Connection) -> None:
        """`connection` has now, or has no longer, a stream of use: either way it was of use just now."""
        before, after = (self._idle, self._kept) if connection.is_kept else (self._kept, self._idle)
        if before.leave(connection):
            after.enter(connection, connection.origin, connection.peer)

    def stream_opened(self, stream: QuicStream) -> None:
        """A peer has opened `stream`, which may mean nothing."""
        self._unused_streams.enter(stream, stream.origin, stream.peer)
        if len(self._unused_streams) > MAX_UNUSED_STREAMS:
            self._unused_streams.give_way().reset()

    def stream_settled(self, stream: QuicStream) -> None:
        """`stream` is of use, or over."""
        self._unused_streams.leave(stream)

    def passed(self, size: int) -> None:
        """So many bytes have come or gone: now and then, count what is held, and end who holds too much."""
        self._passed_bytes += size
        if self._passed_bytes >= COUNT_HELD_EVERY:
            self._passed_bytes = 0
            connections = self.connections
            held = [(connection.origin, connection.held_bytes) for connection in connections]
            for index in too_much(held, MAX_HELD_BYTES):
                connections[index].close("too many bytes are held for you")

    def connection_ended(self, connection: Connection) -> None:
        """Forget `connection`."""
        self._connections.pop(connection, None)
        for crowd in (self._shaking, self._idle, self._kept):
            crowd.leave(connection)
        for cid in connection.cids:
            self.unroute(cid)
        known = self._by_peer.get(connection.peer, [])
        if connection in known:
            known.remove(connection)
            if not known:
                del self._by_peer[connection.peer]

    def remember_goodbye(self, cids: Set[bytes], goodbye: bytes) -> None:
        """Repeat `goodbye` a few times to a peer that goes on sending: the first may have been lost."""
        left = [goodbye] * GOODBYES
        for cid in cids:
            self._goodbyes[cid] = left
        while len(self._goodbyes) > MAX_GOODBYES:
            del self._goodbyes[next(iter(self._goodbyes))]

    # --- inside

    def _start_dial(
        self, host: str, port: int, peer: str | None, round_trip_s: float | None = None
    ) -> Connection:
        ipv6 = ipaddress.ip_address(host).version == 6
        through = next((known for known in self.ports if known.is_ipv6 == ipv6), None)
        try:
            through = through or self.bind("::" if ipv6 else "0.0.0.0", 0)
        except OSError as error:
            raise Unreachable(f"cannot send to {host}: {error.strerror}") from None
        configuration = self._configuration(is_client=True)
        if round_trip_s is not None:
            configuration.initial_rtt = round_trip_s
        core = QuicCore(configuration)
        connection = self._add(through, core, {core.host_cid}, peer)
        connection.connect((host, port, 0, 0) if ipv6 else (host, port))
        return connection

    def _configuration(self, is_client: bool) -> QuicConfiguration:
        return QuicConfiguration(
            alpn_protocols=[ALPN],
            certificate=self._certificate,
            private_key=self._key,
            connection_id_length=CID_BYTES,
            idle_timeout=self._idle_timeout_s,
            is_client=is_client,
            max_data=CONNECTION_WINDOW,
            max_stream_data=STREAM_WINDOW,
            supported_versions=list(VERSIONS),
            verify_mode=ssl.CERT_NONE,  # there are no authorities; `identity` verifies both ends
        )

    def _add(self, port: Port, core: QuicCore, cids: set[bytes], peer: str | None) -> Connection:
        connection = Connection(self, port, core, cids, peer)
        self._connections[connection] = None
        for cid in cids:
            self.route(cid, connection)
        return connection

    def _on_batch(self, port: Port, batch: Batch, errors: list[SendError]) -> None:
        now = trio.current_time()
        turns: dict[Connection, list[tuple[bytes, Addr]]] = {}
        for data, addr in batch:
            try:
                connection = self._find(port, data, addr)
            except Exception:
                logger.exception("a datagram from %s could not be sorted", addr)
                continue
            if connection is not None:
                turns.setdefault(connection, []).append((data, addr))
        for connection, datagrams in turns.items():
            connection.datagrams_received(datagrams, now)
        reports: dict[Addr | None, SendError] = {error.addr: error for error in reversed(errors)}
        for connection in self.connections if reports else ():
            report = reports.get(connection.addr)
            if report is not None:
                connection.send_error(report, now)

    def _find(self, port: Port, data: bytes, addr: Addr) -> Connection | None:
        if len(data) < 1 + CID_BYTES:
            return None
        if not data[0] & 0x80:
            cid = data[1 : 1 + CID_BYTES]
            known = self._routes.get(cid)
            if known is None and cid in self._goodbyes:
                self._say_goodbye_again(cid, port, len(data), addr)
            return known
        initial = parse_initial(data)
        if initial is None:
            return None
        known = self._routes.get(initial.destination_cid)
        if known is not None or not self.accepting:
            return known
        return self._accept(port, initial, len(data), addr)

    def _say_goodbye_again(self, cid: bytes, port: Port, size: int, addr: Addr) -> None:
        left = self._goodbyes[cid]
        if left and len(left[-1]) <= AMPLIFICATION * size:
            port.send(left.pop(), addr)

    def _accept(self, port: Port, initial: Initial, size: int, addr: Addr) -> Connection | None:
        now = trio.current_time()
        if not initial.version_is_spoken:
            answer = version_negotiation(initial, size)
            if answer and self._door.may_answer(now):
                port.send(answer, addr)
            return None
        if not initial.opens_connection(size):
            return None
        cids = self._proven_cids(initial, addr, now)
        origin, place = origin_of(addr[0]), f"{addr[0]} {addr[1]}"
        verdict = self._door.knock(origin, place, proven=cids is not None, now=now)
        if verdict is Verdict.PROVE:
            port.send(self._demand_proof(initial, addr), addr)
        if verdict is not Verdict.ENTER:
            return None
        core = QuicCore(self._configuration(is_client=False), *(cids or (initial.destination_cid, None)))
        connection = self._add(port, core, {core.host_cid, initial.destination_cid}, None)
        self._shaking.enter(connection, origin if cids else "", place)
        if len(self._shaking) > MAX_HANDSHAKES:
            self._shaking.give_way().end(TimedOut("others want to shake hands"))
        return connection

    def _proven_cids(self, initial: Initial, addr: Addr, now: float) -> tuple[bytes, bytes] | None:
        """The first destination id and that of our retry, if the sender has shown that it is where it says."""
        if initial.token:
            try:
                original = self._tokens.validate_token(
                    address=addr, destination_cid=initial.destination_cid, token=initial.token, now=now
                )
                return original, initial.destination_cid
            except ValueError as error:
                logger.debug("a token of %s is not ours: %s", addr, error)
        return None

    def _demand_proof(self, initial: Initial, addr: Addr) -> bytes:
        cid = os.urandom(CID_BYTES)
        token = self._tokens.create_token(
            address=addr,
            original_destination_connection_id=initial.destination_cid,
            retry_source_connection_id=cid,
            now=trio.current_time(),
        )
        return retry(initial, cid, token)

    async def _run_timers(self) -> None:
        while True:
            now = trio.current_time()
            while (connection := self._timers.pop(now)) is not None:
                connection.on_timer(now)
            self._timer_changed = trio.Event()
            self._sleeping_until = self._timers.next_at
            with trio.move_on_at(self._sleeping_until):
                await self._timer_changed.wait()

    def close_connections(self) -> None:
        """Say goodbye to everybody."""
        for connection in self.connections:
            connection.close("going away")
            connection.end(Unreachable("this endpoint is closed"))

    def _close_all(self) -> None:
        self.close_connections()
        for port in self.ports:
            port.close()


@asynccontextmanager
async def open_endpoint(
    identity: Ed25519PrivateKey,
    *,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    largest_datagram: int = CANDIDATES[-1],
) -> AsyncIterator[Endpoint]:
    """An endpoint that dials; `bind` a port and set `accepting` for one that also listens.

    Leaving says goodbye on every connection.
    """
    endpoint = Endpoint(identity, idle_timeout_s, largest_datagram)
    async with background_tasks() as nursery:
        endpoint._nursery = nursery
        nursery.start_soon(endpoint._run_timers)
        try:
            yield endpoint
        finally:
            endpoint._close_all()
