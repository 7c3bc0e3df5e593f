"""aioquic's connection with the four things it lacks: credit on reading, client certificates, acknowledgements that
ride with data (see `lean`), and datagram sizes that can be probed and changed.

With `lean` the only module that reaches into aioquic's private parts, which is why the version is pinned exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    Limit,
    QuicConnectionError,
    QuicReceiveContext,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch
from cryptography import x509

from protocol.transport.limits import (
    CONNECTION_WINDOW,
    MAX_CRYPTO_BYTES,
    MAX_INCOMING_STREAMS,
    MAX_STREAM_GAPS,
    STRANGER_STREAMS,
    STRANGER_WINDOW,
    STREAM_WINDOW,
    STREAMS_BURST,
    STREAMS_PER_S,
)
from protocol.transport.quic.lean import Datagrams, LeanConnection
from protocol.transport.quic.mtu import BASE
from protocol.transport.quic.udp import Addr

CID_BYTES = 8
# The code of our resets. Not 0: that is what go-libp2p resets a stream with whose protocol it does not speak.
APPLICATION_RESET = 1
VERSIONS = [QuicProtocolVersion.VERSION_1]
_LIMIT_FRAME_BYTES = 17  # type and two variable-length integers
_MAX_INITIAL_WINDOW = 64 * 1024
# Streams that a peer may not have yet, because it opens them too fast, are looked at again after this.
_STREAM_CREDIT_PAUSE_S = 0.05


class QuicCore(LeanConnection):
    """One QUIC connection, sans I/O; bounded."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        original_destination_cid: bytes | None = None,
        retry_source_cid: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_cid,
            retry_source_connection_id=retry_source_cid,
        )
        self._window = CONNECTION_WINDOW if self._is_client else STRANGER_WINDOW
        self._local_max_data.value = self._local_max_data.sent = self._window
        streams = self._local_max_streams_bidi
        streams.value = streams.sent = STRANGER_STREAMS
        self.stream_credit_at = (
            math.inf
        )  # when the peer is to be allowed the streams that it opened too fast for
        self._stream_credit = float(STREAMS_BURST)
        self._stream_credit_of = -math.inf
        self._most_streams = STRANGER_STREAMS
        none = self._local_max_streams_uni  # libp2p has no one-way streams
        none.value = none.sent = 0
        self.largest_datagram = 65_527  # until the peer says less
        self._consumed = 0

    # --- state that aioquic keeps to itself

    @property
    def ended(self) -> str | None:
        """Why the connection is over (closed by either side, timed out), or None."""
        event = self._close_event
        if event is None:
            return None
        return event.reason_phrase or f"closed with code {event.error_code:#x}"

    @property
    def close_is_pending(self) -> bool:
        """Whether a CONNECTION_CLOSE still has to be sent."""
        return self._close_pending

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The certificate whose key TLS has proved the peer to hold."""
        return self.tls._peer_certificate

    @property
    def proven_addr(self) -> Addr | None:
        """Where the peer has shown that it receives; it may claim to send from anywhere."""
        return next((path.addr for path in self._network_paths if path.is_validated), None)

    @property
    def handshake_confirmed(self) -> bool:
        """Whether both ends know that the handshake is complete."""
        return self._handshake_confirmed

    @property
    def probe_timeouts(self) -> int:
        """Probe time-outs in a row: how often nothing sent was acknowledged in time."""
        return self._loss._pto_count

    @property
    def round_trip_s(self) -> float:
        """The smoothed round-trip time; 0 before the first measurement."""
        return self._loss._rtt_smoothed

    def has_stream(self, stream_id: int) -> bool:
        """Whether a stream still has something to send, acknowledge or receive."""
        return stream_id in self._streams

    def may_open_stream(self) -> bool:
        """Whether the peer allows one more stream now."""
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    def is_ours(self, stream_id: int) -> bool:
        """Whether this end opened the stream."""
        return (stream_id & 1 == 0) == self._is_client

    def unacknowledged_bytes(self, stream_id: int) -> int:
        """Bytes of the stream that are buffered here: unsent, or sent and not acknowledged."""
        stream = self._streams.get(stream_id)
        return stream.sender._buffer_stop - stream.sender._buffer_start if stream else 0

    @property
    def held_bytes(self) -> int:
        """Bytes held for this connection: arrived and not read, in order or not, and sent and not acknowledged."""
        senders = [stream.sender for stream in self._streams.values()]
        unacknowledged = sum(sender._buffer_stop - sender._buffer_start for sender in senders)
        return self._local_max_data.used - self._consumed + unacknowledged

    def widen_window(self) -> None:
        """The peer is allowed more unread bytes from now on; the next packet tells it."""
        self._window = CONNECTION_WINDOW
        self._local_max_data.value = max(self._local_max_data.value, self._consumed + CONNECTION_WINDOW)

    def widen_streams(self) -> None:
        """The peer is allowed more streams from now on; the next packet tells it."""
        if self._most_streams < MAX_INCOMING_STREAMS:
            self._local_max_streams_bidi.value += MAX_INCOMING_STREAMS - self._most_streams
            self._most_streams = MAX_INCOMING_STREAMS

    def retry_stream_credit(self, now: float) -> None:
        """The peer may be allowed more streams now, with the next packet; if not, look again later."""
        if self.stream_credit_at <= now:
            self.stream_credit_at = now + _STREAM_CREDIT_PAUSE_S

    def received_bytes(self, stream_id: int) -> int | None:
        """Up to where the peer has used the stream's credit; None if the stream is forgotten."""
        stream = self._streams.get(stream_id)
        return stream.receiver.highest_offset if stream else None

    @property
    def has_begun(self) -> bool:
        """Whether a part of the peer's handshake has come."""
        stream = self._crypto_streams.get(Epoch.INITIAL)
        return stream is not None and stream.receiver.highest_offset > 0

    # --- receiving

    def consume(self, size: int) -> bool:
        """The reader has taken `size` bytes; True if new connection credit should be sent."""
        self._consumed += size
        limit = self._local_max_data
        if self._consumed + self._window - limit.value < self._window // 2:
            return False
        limit.value = self._consumed + self._window
        return True

    def grant(self, stream_id: int, consumed: int) -> bool:
        """The stream's reader has taken `consumed` bytes in all; True if new credit should be sent."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished:
            return False
        if consumed + STREAM_WINDOW - stream.max_stream_data_local < STREAM_WINDOW // 2:
            return False
        stream.max_stream_data_local = consumed + STREAM_WINDOW
        return True

    # --- datagram sizes

    def set_datagram_size(self, size: int) -> None:
        """Send datagrams of up to `size` bytes from now on."""
        self._max_datagram_size = size
        recovery = self._loss
        recovery._pacer._max_datagram_size = size
        congestion = recovery._cc
        congestion._max_datagram_size = size  # type: ignore[attr-defined]
        # RFC 9002, section 7.2: ten packets, within a bound; it was computed for the size of the handshake
        initial = max(2 * size, min(10 * size, _MAX_INITIAL_WINDOW))
        congestion.congestion_window = max(congestion.congestion_window, initial)

    def probe_datagram_size(self, size: int, now: float, on_delivery: Callable[[bool], None]) -> Datagrams:
        """A padded PING of `size` bytes; `on_delivery` hears whether it arrived. Empty if none can be sent."""
        crypto = self._cryptos[Epoch.ONE_RTT]
        if not crypto.send.is_valid():
            return []
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            peer_token=b"",
            spin_bit=self._spin_bit,
            version=VERSIONS[0],
        )

        def delivered(state: QuicDeliveryState) -> None:
            on_delivery(state == QuicDeliveryState.ACKED)

        builder.start_packet(QuicPacketType.ONE_RTT, crypto)
        builder.start_frame(QuicFrameType.PING, handler=delivered)
        padding = builder.start_frame(QuicFrameType.PADDING)
        padding.push_bytes(bytes(builder.remaining_buffer_space))
        # Not counted as in flight: a probe that is too big for the path says nothing about congestion
        # (RFC 9000, section 14.4).
        packet = builder._packet
        assert packet is not None
        packet.in_flight = False
        return self._flush_builder(
            builder=builder,
            network_path=self._network_paths[0],
            peer_cid=self._peer_cid.cid,
            now=now,
        )

    # --- what aioquic calls

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        # libp2p peers prove themselves both ways
        self.tls._request_client_certificate = not self._is_client

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        stated = pull_quic_transport_parameters(Buffer(data=data)).max_udp_payload_size
        if stated is not None:
            self.largest_datagram = max(BASE, stated)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Bound what TLS is told: aioquic keeps 512 KiB for a byte that is so far ahead, TLS 16 MiB for a message."""
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MAX_CRYPTO_BYTES:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="a handshake is short",
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        """Send MAX_DATA and MAX_STREAMS where they have grown, MAX_DATA by `consume` and `widen_window` alone."""
        data, streams = self._local_max_data, self._local_max_streams_bidi
        if data.value != data.sent:
            self._write_limit(builder, data, data.value)
        if streams.value - streams.sent > streams.sent - streams.used:
            self._grant_streams(builder, streams)

    def _grant_streams(self, builder: QuicPacketBuilder, streams: Limit) -> None:
        """Allow the peer streams for those that have ended, but not faster than it may open them."""
        since = max(0.0, self._now - self._stream_credit_of)
        self._stream_credit = min(float(STREAMS_BURST), self._stream_credit + since * STREAMS_PER_S)
        self._stream_credit_of = self._now
        due = streams.value - streams.sent
        granted = min(due, int(self._stream_credit))
        if granted:
            self._stream_credit -= granted
            self._write_limit(builder, streams, streams.sent + granted)
        self.stream_credit_at = math.inf if granted == due else self._now + _STREAM_CREDIT_PAUSE_S

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit, value: int) -> None:
        frame = builder.start_frame(
            limit.frame_type,
            capacity=_LIMIT_FRAME_BYTES,
            handler=self._on_limit_delivery,
            handler_args=(limit, limit.sent, value),
        )
        frame.push_uint_var(value)
        limit.sent = value

    def _on_limit_delivery(self, delivery: QuicDeliveryState, limit: Limit, before: int, value: int) -> None:
        if delivery != QuicDeliveryState.ACKED and limit.sent == value:
            limit.sent = before  # it is lost, and no later one says more
            if limit is self._local_max_streams_bidi:
                self._stream_credit += value - before

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        """Send MAX_STREAM_DATA where it has grown; `grant` alone makes it grow."""
        if len(stream.receiver._ranges) > MAX_STREAM_GAPS:
            self.close(
                QuicErrorCode.FLOW_CONTROL_ERROR, QuicFrameType.STREAM_BASE, "too many gaps in a stream"
            )
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=_LIMIT_FRAME_BYTES,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        frame.push_uint_var(stream.stream_id or 0)
        frame.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local
