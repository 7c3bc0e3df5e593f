"""aioquic's connection, quick where nearly every packet is: one path, keys settled, data and acknowledgements alone.

What costs between two tokens is code that is not in the processor's caches, so what seldom has to be looked for is
looked for in one place, and all else is aioquic's own way. With `core` the only module that reaches into aioquic's
private parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from aioquic._crypto import CryptoError
from aioquic.buffer import Buffer, BufferReadError, size_uint_var
from aioquic.quic.connection import (
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.events import QuicEvent
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    QuicStreamFrame,
    get_spin_bit,
    push_ack_frame,
)
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from protocol.transport.limits import MAX_STREAM_GAPS

# Acknowledge at once what comes in a batch or out of order, two packets' worth of bytes (RFC 9000, section 13.2.2),
# or this many small packets; all else with what is sent next, or after this: peers reckon with 25 ms (13.2.1).
# A packet that only acknowledges takes two processors from whoever computes between two tokens.
_ACK_EVERY = 8
ACK_DELAY_S = 0.02

# The first byte of a short header (RFC 9000, section 17.3.1), with the packet number in two bytes.
_NUMBER_BYTES = 2
_SHORT_MASK, _SHORT_FIXED, _RESERVED_BITS = 0xC0, 0x40, 0x18
_SHORT_HEADER = _SHORT_FIXED | (_NUMBER_BYTES - 1)

_HAS_OFFSET, _HAS_LENGTH = 4, 2
_STREAM_FRAMES = frozenset(
    bytes((QuicFrameType.STREAM_BASE | flags,)) for flags in (0, 2, 4, 6)
)  # not an end

_WAS_SENT = attrgetter("was_sent")

Datagrams = list[tuple[bytes, tuple[object, ...]]]

# Each is one object, so its place tells it from the others as well as its name does, thirty times a packet.
Epoch.__hash__ = object.__hash__  # type: ignore[method-assign]


class LeanConnection(QuicConnection):
    """Sends and acknowledges; see `protocol.transport.quic.core.QuicCore` for the rest."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._now = 0.0
        self._ack_delay = ACK_DELAY_S
        self._unacknowledged = 0  # packets and bytes that no ack was written for
        self._unacknowledged_in_bytes = 0
        congestion = self._loss._cc
        slow_start = congestion.on_rtt_measurement

        def less_the_delay(*, now: float, rtt: float) -> None:
            slow_start(now=now, rtt=self._loss._rtt_latest)

        congestion.on_rtt_measurement = less_the_delay  # type: ignore[method-assign]

    def datagrams_to_send(self, now: float) -> Datagrams:
        """What has to be sent now."""
        if not self._network_paths:
            return []  # nothing has been understood yet: there is nobody to answer
        self._now = now
        space = self._spaces[Epoch.ONE_RTT]
        if (
            self._state is not QuicConnectionState.CONNECTED
            or self._has_rare_frames()
            or (space.ack_at is not None and len(space.ack_queue) > 1)  # something is missing
        ):
            return super().datagrams_to_send(now)
        self._pacing_at = None
        return list(self._packets_to_send(now))

    def receive_datagram(self, data: bytes, addr: tuple[object, ...], now: float) -> None:
        """Take what has come."""
        if not self._is_usual(data, addr):
            super().receive_datagram(data, addr, now)
            return
        space = self._spaces[Epoch.ONE_RTT]
        try:
            header, payload, number = self._cryptos[Epoch.ONE_RTT].decrypt_packet(
                data, 1 + len(self.host_cid), space.expected_packet_number
            )
        except CryptoError:
            return  # not the peer's
        if number in space.received_packets:
            return
        if header[0] & _RESERVED_BITS:
            super().receive_datagram(data, addr, now)  # which says what is wrong with it
            return
        self._take_packet(header[0], payload, number, now)

    def next_event(self) -> QuicEvent | None:
        """What has happened; None, if nothing more has."""
        return self._events.popleft() if self._events else None

    def acknowledge_soon(self, datagrams: int, size: int, now: float) -> None:
        """Tell that a turn brought `datagrams` of `size` bytes in all: one that is small may wait for company."""
        space = self._spaces[Epoch.ONE_RTT]
        if space.ack_at is None:
            return
        self._unacknowledged += datagrams
        self._unacknowledged_in_bytes += size
        if (
            datagrams > 1
            or self._unacknowledged >= _ACK_EVERY
            or self._unacknowledged_in_bytes >= 2 * self._max_datagram_size
            or len(space.ack_queue) > 1  # something is missing
        ):
            space.ack_at = now

    def acknowledge_with_data(self, now: float) -> None:
        """What has to be acknowledged rides with what is about to be sent."""
        space = self._spaces.get(Epoch.ONE_RTT)
        if space is not None and space.ack_at is not None:
            space.ack_at = now

    def is_settled(self, now: float) -> bool:
        """Whether what came leaves nothing to do before the time for which `get_timer` spoke, or an ack's is up."""
        return self._spaces[Epoch.ONE_RTT].loss_time is None and not self._may_send(now)

    def get_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        if not self._handshake_confirmed or not self._network_paths[0].is_validated:
            return super().get_timer()
        space, loss = self._spaces[Epoch.ONE_RTT], self._loss
        # Probes that go unanswered, and packets that seem lost, are aioquic's business.
        if loss._pto_count or space.loss_time is not None or self._close_at is None:
            return super().get_timer()
        self._loss_at = None
        due: float = self._close_at
        if space.ack_eliciting_in_flight:
            self._loss_at = loss._time_of_last_sent_ack_eliciting_packet + loss.get_probe_timeout()
            due = min(due, self._loss_at)
        if space.ack_at is not None:
            due = min(due, space.ack_at)
        return due if self._pacing_at is None else min(due, self._pacing_at)

    # --- what aioquic calls

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        super()._write_ack_frame(builder, space, now)
        self._acknowledged(space)

    def _acknowledged(self, space: QuicPacketSpace) -> None:
        space.ack_at = None
        self._unacknowledged = self._unacknowledged_in_bytes = 0

    def _may_send(self, now: float) -> bool:
        """Whether anything may have to be sent: to find out by building a packet costs ten times as much."""
        if not self._handshake_confirmed:
            return True
        ack_at = self._spaces[Epoch.ONE_RTT].ack_at
        due = ack_at is not None and ack_at <= now
        return due or any(map(_has_data, self._streams_queue)) or self._has_rare_frames()

    def _has_rare_frames(self) -> bool:
        """Whether anything but acknowledgements and stream data may have to be written, or looked after."""
        path, data, streams = self._network_paths[0], self._local_max_data, self._local_max_streams_bidi
        return bool(
            not self._handshake_confirmed
            or not path.is_validated
            or path.remote_challenges
            or len(self._network_paths) > 1
            or self._remote_preferred_address is not None
            or self._close_pending
            or self._handshake_done_pending
            or self._ping_pending
            or self._probe_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or self._datagrams_pending
            or data.value != data.sent
            or streams.value - streams.sent > streams.sent - streams.used
            or not all(map(_WAS_SENT, self._host_cids))
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
            or any(map(_is_rare, self._streams.values()))
        )

    # --- the short way out

    def _packets_to_send(self, now: float) -> Iterator[tuple[bytes, tuple[object, ...]]]:
        """Acknowledgement and data, as there is nothing else to be written."""
        space, addr = self._spaces[Epoch.ONE_RTT], self._network_paths[0].addr
        while True:
            acknowledge = space.ack_at is not None and space.ack_at <= now
            waiting = [stream for stream in self._streams_queue if _has_data(stream)]
            if not (acknowledge or waiting):
                return
            if not acknowledge:
                self._pacing_at = self._loss._pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    return
            packet = self._write_packet(waiting, acknowledge, now)
            if packet is None:
                return
            yield packet, addr
            self._loss._pacer.update_after_send(now=now)

    def _write_packet(self, waiting: list[QuicStream], acknowledge: bool, now: float) -> bytes | None:
        """One packet, if congestion and the peer's windows let it hold anything."""
        space, crypto = self._spaces[Epoch.ONE_RTT], self._cryptos[Epoch.ONE_RTT]
        number = self._packet_number
        first = _SHORT_HEADER | self._spin_bit << 5 | crypto.key_phase << 2
        header = bytes((first,)) + self._peer_cid.cid + (number & 0xFFFF).to_bytes(_NUMBER_BYTES, "big")
        extra = len(header) + crypto.aead_tag_size
        buffer = Buffer(self._max_datagram_size - extra)
        packet = QuicSentPacket(Epoch.ONE_RTT, False, False, False, number, QuicPacketType.ONE_RTT, now)
        if acknowledge:
            self._push_ack(buffer, packet, space, now)
        flight = self._loss.congestion_window - self._loss.bytes_in_flight - extra
        for stream in waiting:
            self._push_data(buffer, packet, stream, min(buffer.capacity, flight))
        if not buffer.tell():
            return None
        data = crypto.encrypt_packet(header, buffer.data, number)
        packet.sent_bytes = len(data)
        self._packet_number = number + 1
        self._loss.on_packet_sent(packet=packet, space=space)
        self._network_paths[0].bytes_sent += len(data)
        if packet.is_ack_eliciting and not self._ack_eliciting_sent_since_receipt:
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = True
        return data

    def _push_ack(self, buffer: Buffer, packet: QuicSentPacket, space: QuicPacketSpace, now: float) -> None:
        delay = int((now - (space.largest_received_time or now)) * 1e6) >> self._local_ack_delay_exponent
        buffer.push_uint_var(QuicFrameType.ACK)
        push_ack_frame(buffer, space.ack_queue, delay, buffer.capacity - 1)
        packet.delivery_handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
        self._acknowledged(space)

    def _push_data(self, buffer: Buffer, packet: QuicSentPacket, stream: QuicStream, stop: int) -> None:
        """As much as packet, congestion and both windows take; others have their turn before its next."""
        sender, number = stream.sender, stream.stream_id or 0
        highest, offset = sender.highest_offset, sender.next_offset
        most = min(
            highest + self._remote_max_data - self._remote_max_data_used, stream.max_stream_data_remote
        )
        overhead = 3 + size_uint_var(number) + (size_uint_var(offset) if offset else 0)
        frame = sender.get_frame(stop - buffer.tell() - overhead, most)
        if frame is None:
            return
        buffer.push_uint_var(QuicFrameType.STREAM_BASE | (4 if frame.offset else 0) | 2 | frame.fin)
        buffer.push_uint_var(number)
        if frame.offset:
            buffer.push_uint_var(frame.offset)
        buffer.push_uint16(len(frame.data) | 0x4000)
        buffer.push_bytes(frame.data)
        packet.in_flight = packet.is_ack_eliciting = True
        delivered = (frame.offset, frame.offset + len(frame.data), frame.fin)
        packet.delivery_handlers.append((sender.on_data_delivery, delivered))
        if sender.highest_offset > highest:
            self._remote_max_data_used += sender.highest_offset - highest
            self._streams_queue.remove(stream)
            self._streams_queue.append(stream)

    # --- the short way in

    def _is_usual(self, data: bytes, addr: tuple[object, ...]) -> bool:
        """Whether a datagram is one packet on the one path there is, to the name that the peer uses."""
        return (
            self._handshake_confirmed
            and self._state is QuicConnectionState.CONNECTED
            and len(self._network_paths) == 1
            and self._network_paths[0].is_validated
            and self._network_paths[0].addr == addr
            and data.startswith(self.host_cid, 1)
            and data[0] & _SHORT_MASK == _SHORT_FIXED
        )

    def _take_packet(self, first: int, payload: bytes, number: int, now: float) -> None:
        """A packet has been decrypted, and is new."""
        space = self._spaces[Epoch.ONE_RTT]
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            self._spin_bit = get_spin_bit(first) != self._is_client
            self._spin_highest_pn = number
        is_ack_eliciting = self._take_data(payload) or self._take_frames(payload, now)
        if self._state is not QuicConnectionState.CONNECTED or self._close_pending:
            return
        self._close_at = now + self._idle_timeout()
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet, space.largest_received_time = number, now
        space.ack_queue.add(number)
        space.received_packets.add(number)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        if is_ack_eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay

    def _take_data(self, payload: bytes) -> bool:
        """Take the next bytes of a stream that there is, within its windows; False, if there is anything else."""
        if payload[:1] not in _STREAM_FRAMES:
            return False
        buffer = Buffer(data=payload)
        try:
            kind, stream = buffer.pull_uint8(), self._streams.get(buffer.pull_uint_var())
            offset = buffer.pull_uint_var() if kind & _HAS_OFFSET else 0
            length = buffer.pull_uint_var() if kind & _HAS_LENGTH else len(payload) - buffer.tell()
        except BufferReadError:
            return False
        limit = self._local_max_data
        if (
            stream is None
            or stream.receiver.is_finished
            or stream.receiver._final_size is not None
            or offset != stream.receiver.highest_offset
            or buffer.tell() + length != len(payload)
            or offset + length > stream.max_stream_data_local
            or limit.used + length > limit.value
        ):
            return False
        event = stream.receiver.handle_frame(QuicStreamFrame(data=payload[buffer.tell() :], offset=offset))
        if event is not None:
            self._events.append(event)
        limit.used += length
        return True

    def _take_frames(self, payload: bytes, now: float) -> bool:
        """Take whatever is in a packet; whether it has to be acknowledged."""
        path = self._network_paths[0]
        context = QuicReceiveContext(Epoch.ONE_RTT, self.host_cid, path, None, now, None)
        try:
            is_ack_eliciting, _ = self._payload_received(context, payload)
        except QuicConnectionError as error:
            self.close(error.error_code, error.frame_type, error.reason_phrase)
            return False
        return is_ack_eliciting


def _has_data(stream: QuicStream) -> bool:
    """Whether it has data, or its end, to send; perhaps more than it may."""
    sender = stream.sender
    return not (stream.is_blocked or sender.buffer_is_empty) and (
        len(sender._pending) > 0 or sender._pending_eof
    )


def _is_rare(stream: QuicStream) -> bool:
    """Whether it wants another frame than its data, or is over, or in disorder."""
    receiver, sender = stream.receiver, stream.sender
    return bool(
        receiver.stop_pending
        or sender.reset_pending
        or (receiver.is_finished and sender.is_finished)
        or stream.max_stream_data_local_sent != stream.max_stream_data_local
        or (receiver._buffer and len(receiver._ranges) > MAX_STREAM_GAPS)
    )
