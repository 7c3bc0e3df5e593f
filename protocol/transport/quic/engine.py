"""aioquic's connection with the four things it lacks: credit on reading, client certificates, prompt
acknowledgements that ride with data, and datagram sizes that can be probed and changed.

The only module that reaches into aioquic's private parts, which is why the version is pinned exactly.
"""

from __future__ import annotations

from collections.abc import Callable

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
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
    MAX_INCOMING_STREAMS,
    MAX_STREAM_GAPS,
    STREAM_WINDOW,
)
from protocol.transport.quic.mtu import BASE
from protocol.transport.quic.udp import Addr

CID_BYTES = 8
# The code of our resets. Not 0: that is what go-libp2p resets a stream with whose protocol it does not speak.
APPLICATION_RESET = 1
VERSIONS = [QuicProtocolVersion.VERSION_1]
_LIMIT_FRAME_BYTES = 17  # type and two variable-length integers
_MAX_INITIAL_WINDOW = 64 * 1024
# Acknowledge at once after this many packets (RFC 9000, section 13.2.2 says two), else within aioquic's 1 ms.
_ACK_EVERY = 2

Datagrams = list[tuple[bytes, tuple[object, ...]]]


class Engine(QuicConnection):
    """One QUIC connection, sans I/O."""

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
        streams = self._local_max_streams_bidi
        streams.value = streams.sent = MAX_INCOMING_STREAMS
        none = self._local_max_streams_uni  # libp2p has no one-way streams
        none.value = none.sent = 0
        self.largest_datagram = 65_527  # until the peer says less
        self._consumed = 0
        self._unacknowledged = 0

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
    def proven_address(self) -> Addr | None:
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

    def received_bytes(self, stream_id: int) -> int | None:
        """Up to where the peer has used the stream's credit; None if the stream is forgotten."""
        stream = self._streams.get(stream_id)
        return stream.receiver.highest_offset if stream else None

    def datagrams_to_send(self, now: float) -> Datagrams:
        """What has to be sent now."""
        if not self._network_paths:
            return []  # nothing has been understood yet: there is nobody to answer
        return super().datagrams_to_send(now)

    @property
    def has_begun(self) -> bool:
        """Whether a packet of the peer has been understood."""
        return self._state != QuicConnectionState.FIRSTFLIGHT

    # --- receiving

    def acknowledge_soon(self, datagrams: int, now: float) -> None:
        """Tell that a turn brought `datagrams`: a batch is acknowledged at once, one may wait for company."""
        space = self._spaces[Epoch.ONE_RTT]
        if space.ack_at is not None:
            self._unacknowledged += datagrams
            if self._unacknowledged >= _ACK_EVERY:
                space.ack_at = now

    def acknowledge_with_data(self, now: float) -> None:
        """What has to be acknowledged rides with what is about to be sent."""
        space = self._spaces.get(Epoch.ONE_RTT)
        if space is not None and space.ack_at is not None:
            space.ack_at = now

    def consume(self, size: int) -> bool:
        """The reader has taken `size` bytes; True if new connection credit should be sent."""
        self._consumed += size
        limit = self._local_max_data
        if self._consumed + CONNECTION_WINDOW - limit.value < CONNECTION_WINDOW // 2:
            return False
        limit.value = self._consumed + CONNECTION_WINDOW
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

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        super()._write_ack_frame(builder, space, now)
        self._unacknowledged = 0

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        """Send MAX_DATA and MAX_STREAMS where they have grown; `consume` alone makes MAX_DATA grow."""
        for limit in (self._local_max_data, self._local_max_streams_bidi):
            is_data = limit is self._local_max_data
            left_to_open, would_grant = limit.sent - limit.used, limit.value - limit.sent
            if limit.value != limit.sent and (is_data or left_to_open < would_grant):
                frame = builder.start_frame(
                    limit.frame_type,
                    capacity=_LIMIT_FRAME_BYTES,
                    handler=self._on_connection_limit_delivery,
                    handler_args=(limit,),
                )
                frame.push_uint_var(limit.value)
                limit.sent = limit.value

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
