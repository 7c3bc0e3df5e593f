"""One QUIC connection to one verified peer: its streams, its timers, its end.

Everything here runs between two checkpoints, so nothing needs a lock, and datagrams of one turn leave in order.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from aioquic.quic import events

from protocol.errors import BadSignature, Lost, PeerUnavailable, TimedOut, Unreachable
from protocol.transport.limits import (
    HANDSHAKE_TIMEOUT_S,
    LINGER_TIMEOUT_S,
    MAX_INCOMING_STREAMS,
    NEGOTIATION_TIMEOUT_S,
)
from protocol.transport.origin import origin_of
from protocol.transport.quic.core import APPLICATION_RESET, Datagrams, QuicCore
from protocol.transport.quic.identity import prove_peer
from protocol.transport.quic.liveness import Liveness, Verdict
from protocol.transport.quic.mtu import MtuSearch
from protocol.transport.quic.stream import QuicStream
from protocol.transport.quic.udp import Addr, SendError

if TYPE_CHECKING:
    from protocol.transport.quic.endpoint import Endpoint
    from protocol.transport.quic.port import Port

logger = logging.getLogger(__name__)
_BAD_CERTIFICATE = 0x100 + 42  # CRYPTO_ERROR and TLS's alert
_HEADERS = 28  # IPv4 and UDP; with IPv6's 48 a refused packet is noticed when it is sent
_BLACK_HOLE_TIMEOUTS = 3  # this often in a row nothing passed: perhaps because it was too large


class Connection:
    """Made by the endpoint; usable once `wait_ready` has returned."""

    def __init__(self, endpoint: Endpoint, port: Port, core: QuicCore, expected_peer: str | None) -> None:
        now = trio.current_time()
        self._core = core
        self.peer = ""
        self.closed = trio.Event()
        self.error: PeerUnavailable | None = None
        self.on_closed: list[Callable[[], None]] = []
        self.cids: set[bytes] = {core.host_cid}
        self.timers: list[float] = []  # the endpoint's: when it will call on_timer, the next one last
        self._endpoint = endpoint
        self._port = port
        self._expected_peer = expected_peer
        self._ready = trio.Event()
        self._streams: dict[int, QuicStream] = {}
        self._ending: dict[int, float] = {}  # stream -> when to reset it
        self._need_room: set[QuicStream] = set()
        self._stream_credit = trio.Event()
        self._accept_send, self._accept_receive = trio.open_memory_channel[QuicStream](MAX_INCOMING_STREAMS)
        self._mtu = MtuSearch(endpoint.largest_datagram)
        self._handshake_until = now + HANDSHAKE_TIMEOUT_S
        self._began_at = now
        self._liveness = Liveness(now, endpoint.keepalive_s)
        self._last_sent = b""
        self._kept_streams = 0
        self._seen_at: tuple[Addr | None, str] = (None, "")  # an address and its origin

    # --- for the user

    @property
    def is_dialler(self) -> bool:
        """Whether this end dialled."""
        return self._core.configuration.is_client

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
        return self._kept_streams > 0

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
        with trio.move_on_after(NEGOTIATION_TIMEOUT_S):
            while self.error is None and not self._core.may_open_stream():
                await self._stream_credit.wait()
        if self.error is not None:
            raise Lost(str(self.error))
        if not self._core.may_open_stream():
            raise TimedOut(f"peer {self.peer} allows no more streams")
        stream_id = self._core.get_next_available_stream_id()
        self._core.send_stream_data(stream_id, b"")  # takes the number
        stream = self._streams[stream_id] = QuicStream(self, stream_id)
        if keep:
            stream.keep()
            self._core.widen_window()
        return stream

    async def accept_stream(self) -> QuicStream:
        """The next stream that the peer opens. Raises: Lost, once the connection has ended."""
        try:
            return await self._accept_receive.receive()
        except trio.EndOfChannel:
            raise Lost(str(self.error)) from None

    def close(self, why: str = "", code: int = 0) -> None:
        """Say goodbye and end the connection at once."""
        if self.error is None:
            self._core.close(error_code=code, reason_phrase=why)
            self.flush()
            if self._last_sent:
                self._endpoint.remember_goodbye(self.cids, self._last_sent)

    def abandon(self) -> None:
        """End a dial that did not succeed; with a goodbye only if anybody is there to hear it."""
        if self._liveness.heard_at > self._began_at:
            self.close("dial abandoned")
        self.end(Unreachable("dial abandoned"))

    # --- for its streams

    def write(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> None:
        """Send `data`; what does not fit the window waits inside."""
        if self.error is not None:
            return
        self._endpoint.passed(len(data))
        try:
            self._core.send_stream_data(stream_id, data, end)  # type: ignore[arg-type]
        except (ValueError, RuntimeError):
            return  # aioquic has finished with the stream: the peer stopped it, and its error is on its way
        now = trio.current_time()
        self._liveness.active(now)
        self._core.acknowledge_with_data(now)
        self.flush()

    def unacknowledged_bytes(self, stream_id: int) -> int:
        """How much of the stream waits here, unsent or not acknowledged."""
        return self._core.unacknowledged_bytes(stream_id)

    def stop(self, stream_id: int) -> None:
        """Tell the peer that its bytes are not wanted any more."""
        if self.error is None and self._core.has_stream(stream_id):
            self._core.stop_stream(stream_id, APPLICATION_RESET)
            self.flush()

    def abort(self, stream_id: int, code: int, *, stop: bool) -> None:
        """Reset our direction, and the peer's if `stop`."""
        if self.error is None and self._core.has_stream(stream_id):
            self._core.reset_stream(stream_id, code)
            if stop:
                self._core.stop_stream(stream_id, code)
            self.flush()

    def consumed(self, stream_id: int, size: int, in_all: int | None) -> None:
        """A reader has taken `size` bytes, `in_all` of this stream (None: it wants no more)."""
        if self.error is None and size:
            granted = in_all is not None and self._core.grant(stream_id, in_all)
            if self._core.consume(size) or granted:
                self.flush()

    def stream_kept(self, stream: QuicStream) -> None:
        """`stream` is of use, until it is over."""
        self._kept_streams += 1
        self._endpoint.stream_settled(stream)
        if self._kept_streams == 1:
            self._endpoint.connection_used(self)

    def widen(self) -> None:
        """The peer may have more bytes unread and more streams open."""
        if self.error is None:
            self._core.widen_window()
            self._core.widen_streams()
            self.flush()

    def stream_over(self, stream: QuicStream, *, kept: bool) -> None:
        """This end has closed or reset `stream`."""
        if not kept:
            self._endpoint.stream_settled(stream)
            return
        self._kept_streams -= 1
        if not self._kept_streams and self.error is None:
            self._endpoint.connection_used(self)

    def wants_room(self, stream: QuicStream) -> None:
        """Tell `stream` when its send buffer has emptied."""
        self._need_room.add(stream)

    def release(self, stream: QuicStream, linger_s: float = LINGER_TIMEOUT_S) -> None:
        """`stream` is over here: forget it once the peer has acknowledged everything, or reset it."""
        if self.error is None and stream.stream_id in self._streams:
            self._ending[stream.stream_id] = trio.current_time() + linger_s
            self._forget_ended()

    # --- for the endpoint

    def datagrams_received(self, datagrams: list[tuple[bytes, Addr]], now: float) -> None:
        """Everything that came for this connection in one turn."""
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
        self._endpoint.passed(size)
        if self.error is None:
            if self.is_ready:
                self._core.acknowledge_soon(len(datagrams), now)
            self.flush()
            self._after_turn()

    def on_timer(self, now: float) -> None:
        """A deadline that `next_timer` gave has passed, or seemed to pass when it was given."""
        if now < self.next_timer():
            return
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
            self._liveness.probed(now)
            self._core.send_ping(0)
        self._core.retry_stream_credit(now)
        if self._core.probe_timeouts >= _BLACK_HOLE_TIMEOUTS and self._mtu.current > 1200:
            self._too_big(now)
        self.flush()
        self._after_turn()

    def next_timer(self) -> float:
        """When `on_timer` has to be called, if nothing happens before."""
        due = self._core.get_timer()
        own = (
            self._liveness.next_probe_at(bool(self._streams))
            if self._ready.is_set()
            else self._handshake_until
        )
        if self._ending:
            own = min(own, *self._ending.values())
        own = min(own, self._core.stream_credit_at)
        return own if due is None else min(due, own)

    def send_error(self, error: SendError, now: float) -> None:
        """The system reports on a datagram that this connection sent."""
        if error.errno == errno.EMSGSIZE:
            if self._mtu.current + _HEADERS > error.mtu:
                self._too_big(now)
        elif not self._ready.is_set():
            self.end(Unreachable(f"nobody listens at {error.addr[0]} port {error.addr[1]}"))
        elif error.refused:
            self._refused(now)

    def _refused(self, now: float) -> None:
        verdict = self._liveness.refused(now, self._core.round_trip_s)
        if verdict is Verdict.DEAD:
            self.end(Lost(f"nobody listens any more where peer {self.peer} was"))
        elif verdict is Verdict.ASK:
            self._liveness.probed(now)
            self._core.send_ping(0)
            self.flush()

    def flush(self) -> None:
        """Send everything that may be sent now."""
        now = trio.current_time()
        with self.guarded():
            self._transmit(self._core.datagrams_to_send(now), now)
            self._handle_events()
        if self.error is None:
            self._endpoint.schedule(self)

    # --- inside

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
            if isinstance(event, events.StreamDataReceived):
                self._liveness.active(self._liveness.heard_at)
                stream = self._stream(event.stream_id)
                if stream is not None:
                    stream.data_received(event.data, event.end_stream)
            elif isinstance(event, events.StreamReset):
                stream = self._stream(event.stream_id)
                if stream is not None:
                    stream.reset_received(self._core.received_bytes(event.stream_id), event.error_code)
            elif isinstance(event, events.StopSendingReceived):
                stream = self._stream(event.stream_id)
                if stream is not None:
                    stream.stop_received()
            elif isinstance(event, events.HandshakeCompleted):
                self._handshake_completed(event)
            elif isinstance(event, events.ConnectionIdIssued):
                self._endpoint.route(event.connection_id, self)
            elif isinstance(event, events.ConnectionIdRetired):
                self._endpoint.unroute(event.connection_id, self)
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
        self._endpoint.connection_ready(self)

    def _stream(self, stream_id: int) -> QuicStream | None:
        """The stream, made and handed out if the peer has just opened it."""
        stream = self._streams.get(stream_id)
        if stream is None and not self._core.is_ours(stream_id) and self._core.has_stream(stream_id):
            stream = self._streams[stream_id] = QuicStream(self, stream_id)
            try:
                self._accept_send.send_nowait(stream)
                self._endpoint.stream_opened(stream)
            except (trio.WouldBlock, trio.BrokenResourceError):
                stream.reset()
        return stream

    def _after_turn(self) -> None:
        if self.error is not None:
            return
        if self._need_room:
            self._need_room = {stream for stream in self._need_room if not stream.room_made()}
        if self._core.may_open_stream() and self._stream_credit.statistics().tasks_waiting:
            self._stream_credit.set()
            self._stream_credit = trio.Event()
        self._forget_ended()
        if self.is_ready and self._core.handshake_confirmed:
            self._probe_mtu()

    def _forget_ended(self) -> None:
        now = trio.current_time()
        for stream_id, until in list(self._ending.items()):
            if not self._core.has_stream(stream_id):
                self._ending.pop(stream_id, None)
                self._streams.pop(stream_id, None)
            elif now >= until:
                self._ending[stream_id] = now + LINGER_TIMEOUT_S
                self.abort(stream_id, APPLICATION_RESET, stop=True)

    def _probe_mtu(self) -> None:
        now = trio.current_time()
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
        self._endpoint.schedule(self)

    def _too_big(self, now: float) -> None:
        self._mtu.too_big(now)
        self._core.set_datagram_size(self._mtu.current)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What a stranger's bytes do inside aioquic ends this connection at most."""
        try:
            yield
        except Exception:
            logger.exception("the connection with %s failed", self.peer or self.addr)
            self.end(Lost("the connection failed inside"))

    def end(self, error: PeerUnavailable) -> None:
        """End at once, without a word to the peer."""
        if self.error is not None:
            return
        self.error = error
        for stream in list(self._streams.values()):
            self._endpoint.stream_settled(stream)
            stream.lost(error)
        self._streams.clear()
        self._ending.clear()
        self._need_room.clear()
        self._accept_send.close()
        self._stream_credit.set()
        self._ready.set()
        self.closed.set()
        self._endpoint.connection_ended(self)
        for callback in self.on_closed:
            callback()
