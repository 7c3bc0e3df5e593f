"""aioquic's connection, quick where nearly every packet is: one path, keys settled, data and acknowledgements alone.

What costs between two tokens is code that is not in the processor's caches, so what seldom has to be looked for is
looked for in one place, and all else is aioquic's own way. With `core` the only module that reaches into aioquic's
private parts.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from protocol.transport.limits import MAX_STREAM_GAPS

# Acknowledge at once what comes in a batch or out of order, two packets' worth of bytes (RFC 9000, section 13.2.2),
# or this many small packets; all else with what is sent next, or after this: peers reckon with 25 ms (13.2.1).
# A packet that only acknowledges takes two processors from whoever computes between two tokens.
_ACK_EVERY = 8
ACK_DELAY_S = 0.02

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
        if not self._may_send(now):
            self._pacing_at = None
            return []
        return super().datagrams_to_send(now)

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
            or not all(cid.was_sent for cid in self._host_cids)
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
            or any(map(_is_rare, self._streams.values()))
        )

    def _write_application(self, builder: QuicPacketBuilder, path: QuicNetworkPath, now: float) -> None:
        """Acknowledgement and data, if there is nothing else; aioquic looks for that after each packet again."""
        if self._has_rare_frames():
            super()._write_application(builder, path, now)
            return
        space, crypto = self._spaces[Epoch.ONE_RTT], self._cryptos[Epoch.ONE_RTT]
        while True:
            acknowledge = space.ack_at is not None and space.ack_at <= now
            waiting = [stream for stream in self._streams_queue if _has_data(stream)]
            if not (acknowledge or waiting):
                return
            if not acknowledge:
                self._pacing_at = self._loss._pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    return
            builder.start_packet(QuicPacketType.ONE_RTT, crypto)
            if acknowledge:
                self._write_ack_frame(builder, space, now)
            for stream in waiting:
                self._write_stream_data(builder, space, stream)
            if builder.packet_is_empty:
                return
            self._loss._pacer.update_after_send(now=now)

    def _write_stream_data(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        """As much as packet, congestion and both windows take; others have their turn before its next."""
        most = stream.sender.highest_offset + self._remote_max_data - self._remote_max_data_used
        used = self._write_stream_frame(builder, space, stream, min(most, stream.max_stream_data_remote))
        if used:
            self._remote_max_data_used += used
            self._streams_queue.remove(stream)
            self._streams_queue.append(stream)


def _has_data(stream: QuicStream) -> bool:
    """Whether it has data, or its end, to send; perhaps more than it may."""
    sender = stream.sender
    return not (stream.is_blocked or sender.buffer_is_empty) and (
        len(sender._pending) > 0 or sender._pending_eof
    )


def _is_rare(stream: QuicStream) -> bool:
    """Whether it wants another frame than its data, or is over, or in disorder."""
    receiver, sender = stream.receiver, stream.sender
    return (
        receiver.stop_pending
        or sender.reset_pending
        or (receiver.is_finished and sender.is_finished)
        or stream.max_stream_data_local_sent != stream.max_stream_data_local
        or len(receiver._ranges) > MAX_STREAM_GAPS
    )
