"""A stream from a peer to itself: two hops of one route may be at one node. No network, bounded queues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from protocol.errors import LocalProtocolError, Lost
from protocol.transport.origin import HERE

# Writes under way in one direction; each is a message that its sender holds in a journal anyway.
WRITES: Final = 16


@dataclass(eq=False)
class _Pipe:
    """One direction. It ends cleanly when `sender` is closed, in loss if that was a reset."""

    sender: trio.MemorySendChannel[bytes]
    receiver: trio.MemoryReceiveChannel[bytes]
    was_reset: bool = False

    def reset(self) -> None:
        self.was_reset = True
        self.sender.close()


class LoopbackStream:
    """One end; see `protocol.transport.base.Stream`."""

    def __init__(self, peer: str, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._peer = peer
        self._outgoing = outgoing
        self._incoming = incoming
        self._finished = False

    @property
    def peer(self) -> str:
        """This peer's own id."""
        return self._peer

    @property
    def origin(self) -> str:
        """Nobody else's."""
        return HERE

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`. Raises: Lost; LocalProtocolError, after `finish`."""
        if self._outgoing.was_reset:
            raise Lost("the stream was reset")
        if self._finished:
            raise LocalProtocolError("sending after finish")
        try:
            if data:
                await self._outgoing.sender.send(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Lost("the stream was reset") from None

    @property
    def room(self) -> int:
        """None: whoever sends here may wait."""
        return 0

    def send_now(self, data: bytes) -> None:
        """Never, as there is no `room`."""

    async def receive(self) -> bytes:
        """The next bytes; b"" once the other end has finished. Raises: Lost."""
        try:
            return await self._incoming.receiver.receive()
        except trio.EndOfChannel:
            if not self._incoming.was_reset:
                return b""
        except trio.ClosedResourceError:
            pass  # we have closed it ourselves
        raise Lost("the stream was reset")

    async def finish(self) -> None:
        """Half-close."""
        self._finished = True
        self._outgoing.sender.close()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Finish sending, discard what still arrives."""
        await self.finish()
        self._incoming.receiver.close()

    def keep(self) -> None:
        """There is nobody to give way to."""

    def widen(self) -> None:
        """It is bounded by messages."""

    def reset(self) -> None:
        """End both directions at once; nothing happens to one that has ended."""
        if not self._finished:
            self._outgoing.reset()
        self._finished = True
        self._incoming.reset()
        self._incoming.receiver.close()


def loopback_pair(peer: str) -> tuple[LoopbackStream, LoopbackStream]:
    """Both ends of a new stream."""
    there, back = (_Pipe(*trio.open_memory_channel[bytes](WRITES)) for _ in range(2))
    return LoopbackStream(peer, there, back), LoopbackStream(peer, back, there)
