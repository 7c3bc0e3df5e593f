"""One QUIC connection to one verified peer: its handshake, its life and its end.

Everything here runs between two checkpoints, so nothing needs a lock, and datagrams of one turn leave in order.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Set
from typing import ParamSpec, Protocol

import trio
from aioquic.quic import events

from protocol.errors import BadSignature, Lost, PeerUnavailable, TimedOut, Unreachable
from protocol.transport.limits import HANDSHAKE_TIMEOUT_S
from protocol.transport.origin import origin_of
from protocol.transport.quic.core import QuicCore
from protocol.transport.quic.identity import prove_peer
from protocol.transport.quic.lean import ACK_DELAY_S, Datagrams
from protocol.transport.quic.liveness import Liveness, Verdict
from protocol.transport.quic.mtu import BASE, MtuSearch
from protocol.transport.quic.port import Port
from protocol.transport.quic.stream import QuicStream
from protocol.transport.quic.streams import Newcomers, Streams
from protocol.transport.quic.udp import Addr, SendError

P = ParamSpec("P")

logger = logging.getLogger(__name__)
_BAD_CERTIFICATE = 0x100 + 42  # CRYPTO_ERROR and TLS's alert
_HEADERS = 28  # IPv4 and UDP; with IPv6's 48 a refused packet is noticed when it is sent
_STREAM_EVENTS = (events.StreamDataReceived, events.StreamReset, events.StopSendingReceived)
_BLACK_HOLE_TIMEOUTS = 3  # this often in a row nothing passed: perhaps because it was too large


class Home(Newcomers, Protocol):
    """What a connection needs of the endpoint that has it."""

    keepalive_s: float
    largest_datagram: int

    def wake_at(self, connection: Connection, when: float) -> None:
        """Call its `on_timer` at `when`, or before that if it has said so."""

    def route(self, cid: bytes, connection: Connection) -> None:
        """Packets to `cid` are for `connection`."""

    def unroute(self, cid: bytes) -> None:
        """`cid` is used no more."""

    def passed(self, size: int) -> None:
        """So many bytes have come or gone."""

    def connection_ready(self, connection: Connection) -> None:
        """The peer is verified."""

    def connection_used(self, connection: Connection) -> None:
        """`connection` has now, or has no longer, a stream of use."""

    def connection_ended(self, connection: Connection) -> None:
        """Forget `connection`."""

    def remember_goodbye(self, cids: Set[bytes], goodbye: bytes) -> None:
        """Repeat `goodbye` to a peer that goes on sending to one of `cids`."""


class Connection:
    """Made by the endpoint; usable once `wait_ready` has returned. `cids` are its names in the packets that come.

    `is_dialler`: whether this end dialled.
    """

    def __init__(
        self, home: Home, port: Port, core: QuicCore, cids: set[bytes], expected_peer: str | None
    ) -> None:
        now = trio.current_time()
        self.peer = ""
        self.is_dialler = core.configuration.is_client
        self.closed = trio.Event()
        self.error: PeerUnavailable | None = None
        self._core = core
        self._cids = cids
        self._home = home
        self._port = port
        self._expected_peer = expected_peer
        self._ready = trio.Event()
        self._streams = Streams(self, core, home)
        self._mtu = MtuSearch(home.largest_datagram)
        self._handshake_until = now + HANDSHAKE_TIMEOUT_S
        self._began_at = now
        self._liveness = Liveness(now, home.keepalive_s)
        self._last_sent = b""
        self._seen_at: tuple[Addr | None, str] = (None, "")  # an address and its origin

    # --- for the user

    @property
    def is_ready(self) -> bool:
        """Whether the peer is verified and the connection lives."""
        return self._ready.is_set() and self.error is None

    @property
    def addr(self) -> Addr | None:
        """Where the peer's packets come from."""
        return self._core.get_peer_address()

    @property
    def proven_addr(self) -> Addr | None:
        """Where the peer has shown that it receives."""
        return self._core.proven_addr

    @property
    def origin(self) -> str:
        """The block of addresses where the peer has shown that it receives, or else says it is; empty at first."""
        addr = self.proven_addr or self.addr
        if addr != self._seen_at[0]:
            self._seen_at = (addr, origin_of(addr[0]) if addr is not None else "")
        return self._seen_at[1]

    @property
    def datagram_size(self) -> int:
        """The largest datagram known to pass, in bytes."""
        return self._mtu.current

    @property
    def open_streams(self) -> int:
        """Streams that either end has not finished with."""
        return len(self._streams)

    @property
    def is_kept(self) -> bool:
        """Whether it has a stream of use, see `protocol.transport.base.Stream.keep`."""
        return self._streams.are_of_use

    @property
    def held_bytes(self) -> int:
        """Bytes held for it: arrived and not read, and sent and not acknowledged."""
        return self._core.held_bytes

    async def wait_ready(self) -> None:
        """Wait until the peer is verified. Raises: what ended the attempt."""
        await self._ready.wait()
        if self.error is not None:
            raise type(self.error)(str(self.error))

    async def open_stream(self, *, keep: bool = True) -> QuicStream:
        """A new stream; nothing is sent until its first `send`. If it is to be kept, long answers may come.

        Raises: Lost, if the connection has ended; TimedOut, if the peer allows no more streams.
        """
        return await self._streams.open(keep=keep)

    async def accept_stream(self) -> QuicStream:
        """The next stream that the peer opens. Raises: Lost, once the connection has ended."""
        return await self._streams.accept()

    def close(self, why: str = "", code: int = 0) -> None:
        """Say goodbye and end the connection at once."""
        if self.error is None:
            self._core.close(error_code=code, reason_phrase=why)
            self.flush()
            if self._last_sent:
                self._home.remember_goodbye(self._cids, self._last_sent)

    def abandon(self) -> None:
        """End a dial that did not succeed; with a goodbye only if anybody is there to hear it."""
        if self._liveness.heard_at > self._began_at:
            self.close("dial abandoned")
        self.end(Unreachable("dial abandoned"))

    # --- for its streams

    def data_written(self, size: int) -> None:
        """So many bytes wait to be sent: they go now, with what is to be acknowledged."""
        now = trio.current_time()
        self._home.passed(size)
        self._liveness.active(now)
        self._core.acknowledge_with_data(now)
        self._flush(now)

    def flush(self) -> None:
        """Send everything that may be sent now."""
        self._flush(trio.current_time())

    def used(self) -> None:
        """It has now, or has no longer, a stream of use."""
        self._home.connection_used(self)

    # --- for the endpoint

    @property
    def cids(self) -> Set[bytes]:
        """Its names in the packets that come."""
        return self._cids

    def connect(self, addr: Addr) -> None:
        """Begin to shake hands with whoever is at `addr`."""
        self._core.connect(addr, trio.current_time())
        self.flush()

    def datagrams_received(self, datagrams: list[tuple[bytes, Addr]], now: float) -> None:
        """Everything that came for this connection in one turn."""
        self._guarded(self._receive, datagrams, now)

    def on_timer(self, now: float) -> None:
        """The time has come for which it asked to be woken, or seemed to come when it asked."""
        if self.error is None:
            self._guarded(self._act_on_time if now >= self._next_timer() else self._after_turn, now)
        if self.error is None:
            self._home.wake_at(self, self._next_timer())

    def send_error(self, error: SendError, now: float) -> None:
        """The system reports on a datagram that this connection sent."""
        if error.errno == errno.EMSGSIZE:
            if self._mtu.current + _HEADERS > error.mtu:
                self._too_big(now)
        elif not self._ready.is_set():
            self.end(Unreachable(f"nobody listens at {error.addr[0]} port {error.addr[1]}"))
        elif error.refused:
            self._refused(now)

    def end(self, error: PeerUnavailable) -> None:
        """End at once, without a word to the peer."""
        if self.error is not None:
            return
        self.error = error
        self._streams.lose(error)
        self._ready.set()
        self.closed.set()
        self._home.connection_ended(self)

    # --- inside

    def _receive(self, datagrams: list[tuple[bytes, Addr]], now: float) -> None:
        size = 0
        for data, addr in datagrams:
            size += len(data)
            self._core.receive_datagram(data, addr, now)
        if not (self.is_dialler or self._core.has_begun):
            # Without a word: it may be an honest dialler's second packet whose first was not let in.
            self.end(Unreachable("no first packet of a connection"))
            return
        self._liveness.heard(now)
        self._handle_events()
        self._home.passed(size)
        if self.error is None:
            if self._ready.is_set():
                self._core.acknowledge_soon(len(datagrams), size, now)
                if self._core.is_settled(now) and not self._streams.wait_for_peer:
                    # Whoever reads goes on the sooner; the rest is done when an acknowledgement is due.
                    self._home.wake_at(self, now + ACK_DELAY_S)
                    return
            self._flush(now)
            self._after_turn(now)

    def _act_on_time(self, now: float) -> None:
        due = self._core.get_timer()
        if due is not None and due <= now:
            self._core.handle_timer(now)
            self._handle_events()
        if self.error is not None:
            return
        if not self._ready.is_set() and now >= self._handshake_until:
            self.end(TimedOut("the handshake took too long"))
            return
        if now >= self._liveness.next_probe_at(bool(self._streams)):
            self._ping(now)
        self._core.retry_stream_credit(now)
        if self._core.probe_timeouts >= _BLACK_HOLE_TIMEOUTS and self._mtu.current > BASE:
            self._too_big(now)
        self._flush(now)
        self._after_turn(now)

    def _flush(self, now: float) -> None:
        self._guarded(self._send_due, now)
        if self.error is None:
            self._home.wake_at(self, self._next_timer())

    def _send_due(self, now: float) -> None:
        self._transmit(self._core.datagrams_to_send(now), now)
        self._handle_events()

    def _next_timer(self) -> float:
        """When `on_timer` has something to do, if nothing happens before."""
        own = (
            self._liveness.next_probe_at(bool(self._streams))
            if self._ready.is_set()
            else self._handshake_until
        )
        own = min(own, self._streams.next_due_at, self._core.stream_credit_at)
        due = self._core.get_timer()
        return own if due is None else min(due, own)

    def _refused(self, now: float) -> None:
        verdict = self._liveness.refused(now, self._core.round_trip_s)
        if verdict is Verdict.DEAD:
            self.end(Lost(f"nobody listens any more where peer {self.peer} was"))
        elif verdict is Verdict.ASK:
            self._ping(now)
            self.flush()

    def _ping(self, now: float) -> None:
        self._liveness.probed(now)
        self._core.send_ping(0)

    def _transmit(self, datagrams: Datagrams, now: float) -> None:
        for data, addr in datagrams:
            self._last_sent = data
            number = self._port.send(data, addr)
            if number == errno.EMSGSIZE:
                self._too_big(now)
            elif number and not self._ready.is_set():
                self.end(Unreachable(f"cannot send to {addr[0]}: {errno.errorcode.get(number, number)}"))
                return

    def _handle_events(self) -> None:
        while self.error is None and (event := self._core.next_event()) is not None:
            if isinstance(event, _STREAM_EVENTS):
                if isinstance(event, events.StreamDataReceived):
                    self._liveness.active(self._liveness.heard_at)
                self._streams.handle(event)
            elif isinstance(event, events.HandshakeCompleted):
                self._handshake_completed(event)
            elif isinstance(event, events.ConnectionIdIssued):
                self._cids.add(event.connection_id)
                self._home.route(event.connection_id, self)
            elif isinstance(event, events.ConnectionIdRetired):
                self._cids.discard(event.connection_id)
                self._home.unroute(event.connection_id)
        if self.error is None and self._core.ended is not None:
            if self._core.close_is_pending:
                now = trio.current_time()
                self._transmit(self._core.datagrams_to_send(now), now)
            self.end(self._why_ended(self._core.ended))

    def _why_ended(self, reason: str) -> PeerUnavailable:
        if self._ready.is_set():
            return Lost(f"the connection to {self.peer} has ended: {reason}")
        return Unreachable(f"no connection: {reason}")

    def _handshake_completed(self, event: events.HandshakeCompleted) -> None:
        try:
            self.peer = prove_peer(self._core.peer_certificate, event.alpn_protocol, self._expected_peer)
        except BadSignature as error:
            logger.info("refused %s: %s", self.addr, error)
            self._core.close(error_code=_BAD_CERTIFICATE, reason_phrase="certificate refused")
            now = trio.current_time()
            self._transmit(self._core.datagrams_to_send(now), now)
            self.end(Unreachable(str(error)))
            return
        self._ready.set()
        self._home.connection_ready(self)

    def _after_turn(self, now: float) -> None:
        if self.error is not None:
            return
        self._streams.after_turn(now)
        if self.is_ready and self._core.handshake_confirmed:
            self._probe_mtu(now)

    def _probe_mtu(self, now: float) -> None:
        size = self._mtu.next_probe(now)
        if size is None:
            return
        if size > self._core.largest_datagram:
            self._mtu.refused(now)
            return

        def delivered(arrived: bool, size: int = size) -> None:
            if arrived:
                self._mtu.acknowledged(size)
                self._core.set_datagram_size(self._mtu.current)
            else:
                self._mtu.lost(size, trio.current_time())

        for data, addr in self._core.probe_datagram_size(size, now, delivered):
            if self._port.send(data, addr):
                self._mtu.refused(now)
        self._home.wake_at(self, self._next_timer())

    def _too_big(self, now: float) -> None:
        self._mtu.too_big(now)
        self._core.set_datagram_size(self._mtu.current)

    def _guarded(self, work: Callable[P, None], *given: P.args, **named: P.kwargs) -> None:
        """What a stranger's bytes do inside aioquic ends this connection at most."""
        try:
            work(*given, **named)
        except Exception:
            logger.exception("the connection with %s failed", self.peer or self.addr)
            self.end(Lost("the connection failed inside"))
