"""The one interface to the network that the rest of the project knows.

Peers are named by their libp2p peer id (base58 text, "12D3KooW…"), places by multiaddr text
("/ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooW…"; the /p2p part may be absent where the peer is given).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PeerAddrs:
    """A peer and where it says it listens."""

    peer: str
    addrs: tuple[str, ...]


class Stream(Protocol):
    """One ordered, reliable, flow-controlled byte stream to a verified peer.

    One task may send while another receives; two tasks may not send (or receive) at once.
    """

    @property
    def peer(self) -> str:
        """The verified id of the peer at the other end."""

    @property
    def origin(self) -> str:
        """The block of addresses that the peer's packets come from (see `protocol.transport.origin`)."""

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; waits while the receiver is slow.

        Raises: Lost, if the stream or its connection has ended; LocalProtocolError, after `finish`.
        """

    @property
    def room(self) -> int:
        """Bytes that `send` would take at once; 0 also where it would raise, or has something to find out first."""

    def send_now(self, data: bytes) -> None:
        """Send all of `data`, for which there is `room`, before any other task runs."""

    async def receive(self) -> bytes:
        """The next bytes, at least one; b"" once the peer has finished sending.

        Raises: Lost, if the stream was reset or its connection ended. Bytes that arrived before a
        clean finish are always delivered before b"".
        """

    async def finish(self) -> None:
        """Half-close: no more will be sent; receiving goes on."""

    async def aclose(self) -> None:
        """Finish sending, discard what still arrives, free the stream. Safe to call twice."""

    def keep(self) -> None:
        """The stream is of use, until it ends: it and its connection are the last to give way to strangers'.

        For a handler to call once it has found out what the stream is for, and granted it.
        """

    def widen(self) -> None:
        """The peer may have more bytes unread and more streams open from now on: it was granted a session."""

    def reset(self) -> None:
        """End both directions at once; the peer's next receive raises Lost. Never blocks. Safe twice."""


Handler = Callable[[Stream], Awaitable[None]]


class Dht(Protocol):
    """A hint store: what it says may be stale, and a dead peer in it costs the caller bounded time."""

    async def provide(self, key: str) -> None:
        """Tell the network that this peer has something to say under `key`."""

    async def providers(self, key: str, limit: int = 20) -> list[PeerAddrs]:
        """Peers other than this one that provide `key`, at most `limit`; empty if none are found."""

    async def put(self, key: str, value: bytes) -> None:
        """Store `value` (a signed record, see `protocol.records`) under `key` at the peers nearest to it."""

    async def get(self, key: str) -> bytes | None:
        """The newest valid value found under `key`, from the network, or None."""


class Transport(Protocol):
    """This peer's place in the network. Opened and closed by the implementation's context manager."""

    @property
    def peer(self) -> str:
        """This peer's own id."""

    @property
    def addrs(self) -> tuple[str, ...]:
        """Addresses others can dial, each ending in /p2p/<own id>; empty if this peer only dials."""

    @property
    def dht(self) -> Dht:
        """The Kademlia DHT this peer takes part in."""

    def place_of(self, peer: str) -> str | None:
        """Where `peer` is now, as an address that ends in /p2p/<id>: the other end of a verified connection.

        None if there is no connection. Whoever dials from the port it listens on is seen there.
        """

    def serve(self, protocol: str, handler: Handler) -> None:
        """Call `handler` for each incoming stream of `protocol`.

        The handler owns the stream; when it returns the stream is closed, when it raises the stream is
        reset and the traceback logged. Neither harms the connection or another stream.
        """

    async def connect(self, addr: str) -> str:
        """Connect to the peer at `addr` (must end in /p2p/<id>), let the DHT know it, and return its id.

        Raises: ConfigError, if `addr` is malformed; Unreachable or TimedOut, if nobody answers there.
        """

    async def open_stream(self, peer: str, addrs: Sequence[str], protocol: str) -> Stream:
        """Open a stream of `protocol` to `peer`, dialling `addrs` at once if there is no connection yet.

        Raises: Unreachable (also when the peer does not speak `protocol`), TimedOut, Lost.
        """
