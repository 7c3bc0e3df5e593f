"""The streams of one connection: which there are, who waits for room, which are over and not yet acknowledged."""

from __future__ import annotations

import math
from typing import Protocol

import trio
from aioquic.quic import events

from protocol.errors import Lost, PeerUnavailable, TimedOut
from protocol.transport.limits import LINGER_TIMEOUT_S, MAX_INCOMING_STREAMS, NEGOTIATION_TIMEOUT_S
from protocol.transport.quic.core import APPLICATION_RESET, QuicCore
from protocol.transport.quic.stream import QuicStream


class Newcomers(Protocol):
    """Where the streams that a peer opens are counted until somebody finds them of use."""

    def stream_opened(self, stream: QuicStream) -> None:
        """A peer has opened `stream`, which may mean nothing."""

    def stream_settled(self, stream: QuicStream) -> None:
        """`stream` is of use, or over."""


class Line(Protocol):
    """What the streams need of their connection."""

    @property
    def peer(self) -> str:
        """The verified id of the peer."""

    @property
    def origin(self) -> str:
        """The block of addresses that its packets come from."""

    @property
    def error(self) -> PeerUnavailable | None:
        """What has ended the connection."""

    def data_written(self, size: int) -> None:
        """So many bytes wait to be sent: they go now, with what is to be acknowledged."""

    def flush(self) -> None:
        """Send everything that may be sent now."""

    def used(self) -> None:
        """There is now, or is no longer, a stream of use."""


class Streams:
    """See `protocol.transport.quic.stream.Carrier` for what it does for each of them."""

    def __init__(self, line: Line, core: QuicCore, newcomers: Newcomers) -> None:
        self._line = line
        self._core = core
        self._newcomers = newcomers
        self._open: dict[int, QuicStream] = {}
        self._ending: dict[int, float] = {}  # stream -> when to reset it
        self._need_room: set[QuicStream] = set()
        self._kept = 0
        self._opening = 0  # who waits for the peer to allow another one
        self._credit = trio.Event()
        self._accept_send, self._accept_receive = trio.open_memory_channel[QuicStream](MAX_INCOMING_STREAMS)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def are_of_use(self) -> bool:
        """Whether any of them is."""
        return self._kept > 0

    @property
    def peer(self) -> str:
        """The verified id of the peer at the other end."""
        return self._line.peer

    @property
    def origin(self) -> str:
        """The block of addresses that the peer's packets come from."""
        return self._line.origin

    # --- for the user

    async def open(self, *, keep: bool) -> QuicStream:
        """A new stream; see `Connection.open_stream`."""
        if not self._core.may_open_stream():
            await self._wait_credit()
        if self._line.error is not None:
            raise Lost(str(self._line.error))
        if not self._core.may_open_stream():
            raise TimedOut(f"peer {self.peer} allows no more streams")
        stream_id = self._core.get_next_available_stream_id()
        self._core.send_stream_data(stream_id, b"")  # takes the number
        stream = self._open[stream_id] = QuicStream(self, stream_id)
        if keep:
            stream.keep()
            self._core.widen_window()
        return stream

    async def accept(self) -> QuicStream:
        """The next stream that the peer opens. Raises: Lost, once the connection has ended."""
        try:
            return await self._accept_receive.receive()
        except trio.EndOfChannel:
            raise Lost(str(self._line.error)) from None

    # --- for each of them

    def unacknowledged_bytes(self, stream_id: int) -> int:
        """How much of the stream waits here, unsent or not acknowledged."""
        return self._core.unacknowledged_bytes(stream_id)

    def write(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> None:
        """Send `data`; what does not fit the window waits inside."""
        if self._line.error is not None:
            return
        try:
            self._core.send_stream_data(stream_id, data, end)  # type: ignore[arg-type]
        except (ValueError, RuntimeError):
            return  # aioquic has finished with the stream: the peer stopped it, and its error is on its way
        self._line.data_written(len(data))

    def wants_room(self, stream: QuicStream) -> None:
        """Tell `stream` when its send buffer has emptied."""
        self._need_room.add(stream)

    def consumed(self, stream_id: int, size: int, in_all: int | None) -> None:
        """A reader has taken `size` bytes, `in_all` of this stream (None: it wants no more)."""
        if self._line.error is None and size:
            granted = in_all is not None and self._core.grant(stream_id, in_all)
            if self._core.consume(size) or granted:
                self._line.flush()

    def widen(self) -> None:
        """The peer may have more bytes unread and more streams open."""
        if self._line.error is None:
            self._core.widen_window()
            self._core.widen_streams()
            self._line.flush()

    def kept(self, stream: QuicStream) -> None:
        """`stream` is of use, until it is over."""
        self._kept += 1
        self._newcomers.stream_settled(stream)
        if self._kept == 1:
            self._line.used()

    def over(self, stream: QuicStream, *, kept: bool) -> None:
        """This end has closed or reset `stream`."""
        if not kept:
            self._newcomers.stream_settled(stream)
            return
        self._kept -= 1
        if not self._kept and self._line.error is None:
            self._line.used()

    def stop(self, stream_id: int) -> None:
        """Tell the peer that its bytes are not wanted any more."""
        if self._line.error is None and self._core.has_stream(stream_id):
            self._core.stop_stream(stream_id, APPLICATION_RESET)
            self._line.flush()

    def abort(self, stream_id: int, code: int, *, stop: bool) -> None:
        """Reset our direction, and the peer's if `stop`."""
        if self._line.error is None and self._core.has_stream(stream_id):
            self._core.reset_stream(stream_id, code)
            if stop:
                self._core.stop_stream(stream_id, code)
            self._line.flush()

    def release(self, stream: QuicStream, linger_s: float = LINGER_TIMEOUT_S) -> None:
        """`stream` is over here: forget it once the peer has acknowledged everything, or reset it."""
        if self._line.error is None and stream.stream_id in self._open:
            now = trio.current_time()
            self._ending[stream.stream_id] = now + linger_s
            self._forget_ended(now)

    # --- for the connection

    @property
    def next_due_at(self) -> float:
        """When `after_turn` has something to do, if nothing comes before."""
        return min(self._ending.values(), default=math.inf)

    def handle(
        self, event: events.StreamDataReceived | events.StreamReset | events.StopSendingReceived
    ) -> None:
        """Something has come for one of them, or for a new one."""
        stream = self._stream(event.stream_id)
        if stream is None:
            return
        if isinstance(event, events.StreamDataReceived):
            stream.data_received(event.data, event.end_stream)
        elif isinstance(event, events.StreamReset):
            stream.reset_received(self._core.received_bytes(event.stream_id), event.error_code)
        else:
            stream.stop_received()

    @property
    def wait_for_peer(self) -> bool:
        """Whether somebody may be able to go on after anything that comes."""
        return bool(self._need_room or self._opening)

    def after_turn(self, now: float) -> None:
        """Datagrams have come, or time has passed: somebody may go on, and some may be forgotten."""
        if self._need_room:
            self._need_room = {stream for stream in self._need_room if not stream.room_made()}
        if self._opening and self._core.may_open_stream():
            self._credit.set()
            self._credit = trio.Event()
        if self._ending:
            self._forget_ended(now)

    def lose(self, error: PeerUnavailable) -> None:
        """The connection has ended, and they with it."""
        for stream in list(self._open.values()):
            self._newcomers.stream_settled(stream)
            stream.lost(error)
        self._open.clear()
        self._ending.clear()
        self._need_room.clear()
        self._accept_send.close()
        self._credit.set()

    # --- inside

    async def _wait_credit(self) -> None:
        self._opening += 1
        try:
            with trio.move_on_after(NEGOTIATION_TIMEOUT_S):
                while self._line.error is None and not self._core.may_open_stream():
                    await self._credit.wait()
        finally:
            self._opening -= 1

    def _stream(self, stream_id: int) -> QuicStream | None:
        """The stream, made and handed out if the peer has just opened it."""
        stream = self._open.get(stream_id)
        if stream is None and not self._core.is_ours(stream_id) and self._core.has_stream(stream_id):
            stream = self._open[stream_id] = QuicStream(self, stream_id)
            try:
                self._accept_send.send_nowait(stream)
                self._newcomers.stream_opened(stream)
            except (trio.WouldBlock, trio.BrokenResourceError):
                stream.reset()
        return stream

    def _forget_ended(self, now: float) -> None:
        for stream_id, until in list(self._ending.items()):
            if not self._core.has_stream(stream_id):
                self._ending.pop(stream_id, None)
                self._open.pop(stream_id, None)
            elif now >= until:
                self._ending[stream_id] = now + LINGER_TIMEOUT_S
                self.abort(stream_id, APPLICATION_RESET, stop=True)
