"""A node that computes as it should and says something else: to its client and to the hop behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from protocol.codec import FrameReader, encode
from protocol.messages import SESSION_PROTOCOL, Message
from protocol.transport.base import Handler, Stream
from protocol.transport.memory.transport import MemoryTransport

Lie = Callable[[Message], Iterable[Message | bytes]]


def honest(message: Message) -> Iterable[Message | bytes]:
    """What is to be said."""
    return (message,)


class Mouth:
    """The transport of a node. Each message of a session that it sends is what `lie` makes of it."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self.lie: Lie = honest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def serve(self, protocol: str, handler: Handler) -> None:
        """See `protocol.transport.base.Transport`."""

        async def handle(stream: Stream) -> None:
            await handler(LyingStream(stream, self))

        self._transport.serve(protocol, handle if protocol == SESSION_PROTOCOL else handler)

    async def open_stream(self, peer: str, addrs: Sequence[str], protocol: str) -> Stream:
        """See `protocol.transport.base.Transport`."""
        stream = await self._transport.open_stream(peer, addrs, protocol)
        return LyingStream(stream, self) if protocol == SESSION_PROTOCOL else stream


class LyingStream:
    """A stream through a mouth."""

    def __init__(self, stream: Stream, mouth: Mouth) -> None:
        self._stream = stream
        self._mouth = mouth
        self._reader = FrameReader()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def room(self) -> int:
        """None: all that is said goes by way of the mouth."""
        return 0

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """See `protocol.transport.base.Stream`."""
        self._reader.feed(bytes(data))
        while (message := self._reader.next()) is not None:
            for said in self._mouth.lie(message):
                await self._stream.send(said if isinstance(said, bytes) else encode(said))
