"""Our connections and streams in the shape that py-libp2p's host expects."""

from __future__ import annotations

import math
from types import TracebackType

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from protocol.errors import LocalProtocolError, PeerUnavailable
from protocol.transport.addresses import Address
from protocol.transport.libp2p.streams import AcceptedStream
from protocol.transport.limits import HOST_STREAM_BYTES, HOST_STREAM_TIMEOUT_S
from protocol.transport.quic.connection import Connection


class MuxedConnection(IMuxedConn):
    """A verified QUIC connection. Incoming streams do not come this way: the transport sorts them."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.peer_id = ID.from_base58(connection.peer)
        self.event_started = trio.Event()
        self.event_started.set()

    @property
    def is_initiator(self) -> bool:
        """Whether this end dialled."""
        return self.connection.is_dialler

    @property
    def is_established(self) -> bool:
        """Whether the peer is verified and the connection lives."""
        return self.connection.is_ready

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self.connection.error is not None

    async def start(self) -> None:
        """Nothing to do: the endpoint runs it."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Say goodbye."""
        self.connection.close()
        await trio.lowlevel.checkpoint()

    async def open_stream(self) -> MuxedStream:
        """A new stream. Raises: MuxedConnUnavailable."""
        try:
            stream = await self.connection.open_stream(keep=False)
        except PeerUnavailable as error:
            raise MuxedConnUnavailable(str(error)) from error
        return MuxedStream(self, AcceptedStream(stream, b""), HOST_STREAM_BYTES)

    async def accept_stream(self) -> MuxedStream:
        """Wait for the end. Raises: MuxedConnUnavailable, then."""
        await self.connection.closed.wait()
        raise MuxedConnUnavailable(str(self.connection.error))

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Where the peer's packets come from."""
        addr = self.connection.addr
        if addr is None:
            return []
        return [Multiaddr(str(Address.of(addr[0], addr[1])))]

    def get_connection_type(self) -> ConnectionType:
        """Never through a relay."""
        return ConnectionType.DIRECT


class MuxedStream(IMuxedStream):
    """One of our streams with py-libp2p's errors; at most `most` bytes are read of it, if that is given."""

    def __init__(self, connection: MuxedConnection, stream: AcceptedStream, most: int | None = None) -> None:
        self.muxed_conn = connection
        self._stream = stream
        self._left = math.inf if most is None else most

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes. Raises: MuxedStreamEOF, MuxedStreamReset (also after a long silence)."""
        try:
            with trio.fail_after(HOST_STREAM_TIMEOUT_S):
                data = await self._stream.receive(n)
        except trio.TooSlowError:
            self._stream.reset()
            raise MuxedStreamReset("the peer said nothing for too long") from None
        except PeerUnavailable as error:
            raise MuxedStreamReset(str(error)) from error
        if not data and n != 0:
            raise MuxedStreamEOF()
        self._left -= len(data)
        if self._left < 0:
            self._stream.reset()
            raise MuxedStreamReset("the peer says too much")
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises: MuxedStreamError."""
        try:
            with trio.fail_after(HOST_STREAM_TIMEOUT_S):
                await self._stream.send(data)
        except trio.TooSlowError:
            self._stream.reset()
            raise MuxedStreamReset("the peer took nothing for too long") from None
        except (PeerUnavailable, LocalProtocolError) as error:
            raise MuxedStreamError(str(error)) from error

    async def close_write(self) -> None:
        """Half-close."""
        await self._stream.finish()

    async def close(self) -> None:
        """Close both directions."""
        await self._stream.aclose()

    async def reset(self) -> None:
        """Reset both directions."""
        self._stream.reset()
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Every read and write has a fixed deadline of its own."""

    def get_remote_address(self) -> tuple[str, int] | None:
        """Unknown: identify would report it as a TCP address."""
        return None

    async def __aenter__(self) -> MuxedStream:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()
