"""Our streams: a QUIC stream whose protocol is agreed on with its first bytes."""

from __future__ import annotations

import trio

from protocol.errors import Lost, Malformed, TimedOut, Unreachable
from protocol.transport.libp2p.multistream import (
    NEGOTIATION_FAILED,
    NOT_AVAILABLE,
    LineReader,
    proposal,
    read_answer,
)
from protocol.transport.limits import NEGOTIATION_TIMEOUT_S
from protocol.transport.quic.stream import QuicStream


class OpenedStream:
    """An outgoing stream; see `protocol.transport.base.Stream`. A refusal is raised by the first receive."""

    def __init__(self, stream: QuicStream, protocol: str) -> None:
        self._stream = stream
        self._protocol = protocol
        self._unsent = proposal(protocol)
        self._rest = b""
        self._agreed = False

    @property
    def peer(self) -> str:
        """The verified id of the peer at the other end."""
        return self._stream.peer

    @property
    def origin(self) -> str:
        """The block of addresses that the peer's packets come from."""
        return self._stream.origin

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; the first time with the proposal before it."""
        try:
            if self._unsent:
                first, self._unsent = self._unsent, b""
                await self._stream.send(b"".join((first, data)))
            else:
                await self._stream.send(data)
        except Lost:
            if not (self._agreed or self._stream.is_lost or self._stream.is_closed):
                await self._agree()  # why it ended is in the answer
            raise

    @property
    def room(self) -> int:
        """Bytes that `send` would take at once; nothing, before the peer has agreed."""
        return self._stream.room if self._agreed else 0

    def send_now(self, data: bytes) -> None:
        """Send all of `data`, for which there is `room`."""
        self._stream.send_now(data)

    async def receive(self) -> bytes:
        """The next bytes, or b"" once the peer has finished."""
        if not self._agreed:
            await self._agree()
        if self._rest:
            data, self._rest = self._rest, b""
            await trio.lowlevel.checkpoint()
            return data
        return await self._stream.receive()

    async def finish(self) -> None:
        """Half-close."""
        await self._propose()
        await self._stream.finish()

    async def aclose(self) -> None:
        """Finish, discard what still arrives."""
        if self._unsent:
            self.reset()  # nothing was ever said: there is nothing to finish
        await self._stream.aclose()

    def keep(self) -> None:
        """What this end opens is of use to it."""

    def widen(self) -> None:
        """The peer may have more."""
        self._stream.widen()

    def reset(self) -> None:
        """End both directions at once."""
        self._stream.reset()

    async def _propose(self) -> None:
        if self._unsent:
            first, self._unsent = self._unsent, b""
            await self._stream.send(first)

    async def _agree(self) -> None:
        await self._propose()
        lines = LineReader(self._stream)
        try:
            with trio.fail_after(NEGOTIATION_TIMEOUT_S):
                await read_answer(lines, self.peer, self._protocol)
        except trio.TooSlowError:
            self.reset()
            raise TimedOut(f"peer {self.peer} did not answer which protocol it speaks") from None
        except Malformed as error:
            self.reset()
            raise Unreachable(str(error)) from None
        except Unreachable:
            self.reset()
            raise
        except Lost:
            # A responder that finds no meaning in our first data may reset the stream right after its refusal,
            # go-libp2p even instead of it.
            lines.feed(self._stream.take_before_reset())
            code = self._stream.reset_code
            without_a_word = code == 0 and not lines.rest
            if not (without_a_word or code == NEGOTIATION_FAILED or lines.next_is(NOT_AVAILABLE)):
                raise
            self.reset()
            raise Unreachable(f"peer {self.peer} does not speak {self._protocol}") from None
        self._rest = lines.rest
        self._agreed = True


class AcceptedStream:
    """An incoming stream after its protocol is agreed on; see `protocol.transport.base.Stream`."""

    def __init__(self, stream: QuicStream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest

    @property
    def peer(self) -> str:
        """The verified id of the peer at the other end."""
        return self._stream.peer

    @property
    def origin(self) -> str:
        """The block of addresses that the peer's packets come from."""
        return self._stream.origin

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        await self._stream.send(data)

    @property
    def room(self) -> int:
        """Bytes that `send` would take at once."""
        return self._stream.room

    def send_now(self, data: bytes) -> None:
        """Send all of `data`, for which there is `room`."""
        self._stream.send_now(data)

    async def receive(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, or b"" once the peer has finished."""
        if not self._rest:
            return await self._stream.receive(max_bytes)
        size = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = self._rest[:size], self._rest[size:]
        await trio.lowlevel.checkpoint()
        return data

    async def finish(self) -> None:
        """Half-close."""
        await self._stream.finish()

    async def aclose(self) -> None:
        """Finish, discard what still arrives."""
        self._rest = b""
        await self._stream.aclose()

    def keep(self) -> None:
        """It is of use."""
        self._stream.keep()

    def widen(self) -> None:
        """The peer may have more."""
        self._stream.widen()

    def reset(self) -> None:
        """End both directions at once."""
        self._rest = b""
        self._stream.reset()
