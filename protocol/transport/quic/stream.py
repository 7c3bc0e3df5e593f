"""One QUIC stream: bytes in, bytes out, and the ways it ends."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

import trio

from protocol.errors import LocalProtocolError, Lost, PeerUnavailable
from protocol.transport.limits import LINGER_TIMEOUT_S, SEND_BUFFER
from protocol.transport.quic.core import APPLICATION_RESET

_JOIN_BELOW = 16_384


class Waiter:
    """At most one task that sleeps until it is woken; cheaper than an Event for every wait."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Sleep until `wake`."""
        if self._task is not None:
            raise LocalProtocolError("two tasks use one direction of a stream at once")
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Wake the task that waits, if one does."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class Carrier(Protocol):
    """What a stream needs of the connection it is on."""

    @property
    def peer(self) -> str:
        """The verified id of the peer at the other end."""

    @property
    def origin(self) -> str:
        """The block of addresses that the peer's packets come from."""

    def unacknowledged_bytes(self, stream_id: int) -> int:
        """How much of the stream waits here, unsent or not acknowledged."""

    def write(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> None:
        """Send `data`; what does not fit the window waits inside."""

    def wants_room(self, stream: QuicStream) -> None:
        """Tell `stream` when its send buffer has emptied."""

    def consumed(self, stream_id: int, size: int, in_all: int | None) -> None:
        """A reader has taken `size` bytes, `in_all` of this stream (None: it wants no more)."""

    def widen(self) -> None:
        """The peer may have more bytes unread and more streams open."""

    def kept(self, stream: QuicStream) -> None:
        """`stream` is of use, until it is over."""

    def over(self, stream: QuicStream, *, kept: bool) -> None:
        """This end has closed or reset `stream`."""

    def stop(self, stream_id: int) -> None:
        """Tell the peer that its bytes are not wanted any more."""

    def abort(self, stream_id: int, code: int, *, stop: bool) -> None:
        """Reset our direction, and the peer's if `stop`."""

    def release(self, stream: QuicStream, linger_s: float = LINGER_TIMEOUT_S) -> None:
        """`stream` is over here: forget it once the peer has acknowledged everything, or reset it."""


class QuicStream:
    """See `protocol.transport.base.Stream`; `receive` can also be told how much to give at most."""

    def __init__(self, carrier: Carrier, stream_id: int) -> None:
        self._carrier = carrier
        self.stream_id = stream_id
        self._chunks: deque[bytes | bytearray] = deque()
        self._consumed = 0  # bytes the reader has taken, or that were thrown away
        self._arrived = 0
        self._fin_received = False
        self._fin_sent = False
        self._closed = False
        self._was_reset = False
        self._is_lost = False
        self._kept = False
        self.reset_code: int | None = None  # the peer's, once it has reset the stream
        self._receive_error: PeerUnavailable | None = None
        self._send_error: PeerUnavailable | None = None
        self._reader = Waiter()
        self._writer = Waiter()

    @property
    def peer(self) -> str:
        """The verified id of the peer at the other end."""
        return self._carrier.peer

    @property
    def origin(self) -> str:
        """The block of addresses that the peer's packets come from."""
        return self._carrier.origin

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; waits while the receiver is slow.

        Raises: Lost, if the stream or its connection has ended; LocalProtocolError, after `finish`.
        """
        view = memoryview(data).cast("B") if data else memoryview(b"")
        while True:
            self._check_sendable()
            if not view:
                break
            room = self.room
            if room:
                self._carrier.write(self.stream_id, view[:room])
                view = view[room:]
            else:
                self._carrier.wants_room(self)
                await self._writer.wait()
        # after the flush, so that the packet is on its way before other tasks run
        await trio.lowlevel.checkpoint()

    @property
    def room(self) -> int:
        """Bytes that `send` would take at once."""
        if self._send_error is not None or self._fin_sent:
            return 0
        return max(0, SEND_BUFFER - self._carrier.unacknowledged_bytes(self.stream_id))

    def send_now(self, data: bytes) -> None:
        """Send all of `data`, for which there is `room`."""
        self._carrier.write(self.stream_id, data)

    async def receive(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at least one; b"" once the peer has finished sending.

        Raises: Lost, if the stream was reset or its connection ended.
        """
        if self._readable():
            await trio.lowlevel.checkpoint()
        while not self._readable():
            await self._reader.wait()
        if self._receive_error is not None and (self._was_reset or not self._chunks):
            raise type(self._receive_error)(str(self._receive_error))
        return self._take(max_bytes)

    def take_before_reset(self) -> bytes:
        """What had arrived when the peer reset the stream, which `receive` does not give any more."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data

    async def finish(self) -> None:
        """Half-close: no more will be sent; receiving goes on."""
        if not self._fin_sent and self._send_error is None:
            self._fin_sent = True
            self._carrier.write(self.stream_id, b"", end=True)
            self._release_if_done()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Finish sending, discard what still arrives, free the stream. Safe to call twice."""
        self.close_soon()
        await trio.lowlevel.checkpoint()

    def close_soon(self) -> None:
        """`aclose`, without a checkpoint."""
        if self._closed:
            return
        self._close(Lost("the stream was closed"))
        if not self._fin_sent:
            self._fin_sent = True
            self._carrier.write(self.stream_id, b"", end=True)
        if not self._fin_received:
            self._carrier.stop(self.stream_id)
        self._carrier.release(self)

    def reset(self, code: int = APPLICATION_RESET) -> None:
        """End both directions at once; the peer's next receive raises Lost. Never blocks. Safe twice."""
        if self._closed:
            return
        self._close(Lost("the stream was reset"))
        self._fin_sent = True
        self._carrier.abort(self.stream_id, code, stop=not self._fin_received)
        self._carrier.release(self)

    def keep(self) -> None:
        """See `protocol.transport.base.Stream`."""
        if not (self._kept or self._closed):
            self._kept = True
            self._carrier.kept(self)

    def widen(self) -> None:
        """See `protocol.transport.base.Stream`."""
        self._carrier.widen()

    # --- what the connection tells

    @property
    def is_closed(self) -> bool:
        """Whether this end has closed or reset it."""
        return self._closed

    @property
    def is_lost(self) -> bool:
        """Whether its connection has ended before it."""
        return self._is_lost

    def data_received(self, data: bytes, fin: bool) -> None:
        """The next bytes in order, and whether they are the last."""
        self._arrived += len(data)
        if self._closed:
            self._discard()
        elif data:
            self._keep(data)
        if fin:
            self._fin_received = True
            self._release_if_done()
        self._reader.wake()

    def reset_received(self, used: int | None, code: int) -> None:
        """The peer has reset its direction after sending `used` bytes."""
        self._arrived = max(self._arrived, used or 0)
        self._discard()
        if not self._closed:
            self._receive_error = Lost("the peer reset the stream")
            self.reset_code = code
        self._was_reset = True
        self._reader.wake()

    def stop_received(self) -> None:
        """The peer takes no more; aioquic has reset our direction."""
        if self._send_error is None:
            self._send_error = Lost("the peer closed the stream")
        self._writer.wake()

    def room_made(self) -> bool:
        """Wake the sender if there is room again; True if so."""
        if self._carrier.unacknowledged_bytes(self.stream_id) > SEND_BUFFER // 2:
            return False
        self._writer.wake()
        return True

    def lost(self, error: PeerUnavailable) -> None:
        """The connection has ended. What arrived before a clean finish can still be read."""
        self._is_lost = True
        self._send_error = self._send_error or error
        if not (self._fin_received or self._was_reset):
            self._receive_error = error
        self._reader.wake()
        self._writer.wake()

    # --- inside

    def _keep(self, data: bytes) -> None:
        # Small pieces are joined: a peer that sends single bytes must not make us hold an object for each.
        if self._chunks and len(self._chunks[-1]) < _JOIN_BELOW:
            last = self._chunks[-1]
            if not isinstance(last, bytearray):
                last = self._chunks[-1] = bytearray(last)
            last += data
        else:
            self._chunks.append(data)

    def _release_if_done(self) -> None:
        """Both directions have ended well: the connection need not know us when all is acknowledged."""
        if self._fin_sent and self._fin_received and not self._closed:
            self._carrier.release(self, linger_s=math.inf)

    def _readable(self) -> bool:
        return bool(self._chunks) or self._fin_received or self._receive_error is not None

    def _check_sendable(self) -> None:
        if self._send_error is not None:
            raise type(self._send_error)(str(self._send_error))
        if self._fin_sent:
            raise LocalProtocolError("send after finish")

    def _take(self, max_bytes: int | None) -> bytes:
        if not self._chunks:
            return b""
        data = bytes(self._chunks.popleft()) if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if max_bytes is not None and len(data) > max_bytes:
            self._chunks.append(data[max_bytes:])
            data = data[:max_bytes]
        self._consumed += len(data)
        self._carrier.consumed(self.stream_id, len(data), self._consumed)
        return data

    def _discard(self) -> None:
        """Give the connection's credit for bytes that nobody will read; the stream's own ends with it."""
        unread = self._arrived - self._consumed
        self._consumed = self._arrived
        self._carrier.consumed(self.stream_id, unread, None)

    def _close(self, error: Lost) -> None:
        self._closed = True
        self._chunks.clear()
        self._discard()
        self._carrier.over(self, kept=self._kept)
        self._receive_error = self._receive_error or error
        self._send_error = self._send_error or error
        self._reader.wake()
        self._writer.wake()
