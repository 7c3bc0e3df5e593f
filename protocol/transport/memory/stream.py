"""A stream in memory, and the connection it belongs to."""

from __future__ import annotations

import math
import random
from typing import Protocol

import trio

from protocol.errors import Lost, PeerUnavailable
from protocol.transport.memory.pipe import Line, Pipe

AT_ONCE = -math.inf


class MemoryStream:
    """One end of a stream; see `protocol.transport.base.Stream`."""

    def __init__(self, connection: Connection, peer: str, inbox: Pipe, outbox: Pipe) -> None:
        self._connection = connection
        self._peer = peer
        self.inbox = inbox
        self._outbox = outbox
        self._ended = False

    @property
    def peer(self) -> str:
        """The id of the peer at the other end."""
        return self._peer

    @property
    def origin(self) -> str:
        """The block of addresses that the peer is in."""
        return self._connection.origin_of(self._peer)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        await self._outbox.send(bytes(data))

    @property
    def room(self) -> int:
        """Bytes that `send` would take at once."""
        return self._outbox.room

    def send_now(self, data: bytes) -> None:
        """Send all of `data`, for which there is `room`."""
        self._outbox.send_now(data)

    async def receive(self) -> bytes:
        """The next bytes, or b"" once the peer has finished."""
        return await self.inbox.receive()

    async def finish(self) -> None:
        """Half-close."""
        self._outbox.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Finish, and tell the peer to stop if it has not."""
        if not self._ended:
            self._end()
            self._outbox.finish()
            if self.inbox.discard():
                self.inbox.fail(
                    Lost, "the peer closed the stream", send_at=self._outbox.arrival(), receive_at=math.inf
                )
        await trio.lowlevel.checkpoint()

    def keep(self) -> None:
        """Nobody gives way here."""

    def widen(self) -> None:
        """Nothing is bounded by peer here."""

    def reset(self) -> None:
        """End both directions: here at once, there when the news arrives."""
        self.refuse(Lost, "the stream was reset")

    def refuse(self, kind: type[PeerUnavailable], message: str) -> None:
        """What `reset` does, with a reason that both ends read."""
        if not self._ended:
            self._end()
            there = self._outbox.arrival()
            self._outbox.fail(kind, message, send_at=AT_ONCE, receive_at=there)
            self.inbox.fail(kind, message, send_at=there, receive_at=AT_ONCE)

    def lose(self, why: str, at: float) -> None:
        """The connection is gone: both directions end here; the other end hears it from its own."""
        self._outbox.fail(Lost, why, send_at=at, receive_at=math.inf)
        self.inbox.fail(Lost, why, send_at=math.inf, receive_at=at)

    def notify(self) -> None:
        """Look again: the line has changed."""
        self.inbox.notify()
        self._outbox.notify()

    def _end(self) -> None:
        self._ended = True
        self._connection.forget(self)


class End(Protocol):
    """What is at each end of a connection: a peer that is or was in the network."""

    @property
    def peer(self) -> str:
        """Its id."""

    @property
    def addrs(self) -> tuple[str, ...]:
        """Where others can dial it; empty if it only dials."""

    @property
    def origin(self) -> str:
        """The block of addresses it is in."""

    @property
    def alive(self) -> bool:
        """Whether it has neither left nor been killed."""

    def meet(self, peer: str) -> None:
        """A connection with `peer` has begun."""

    def accept(self, stream: MemoryStream, protocol: str) -> None:
        """Another peer has opened `stream`."""

    def watch(self, connection: Connection, idle_timeout_s: float) -> None:
        """Give `connection` up at this end unless its line heals within `idle_timeout_s`."""

    def stop(self) -> None:
        """End what runs here, as death or leaving does."""


class Connection:
    """Two peers that know each other, and their open streams."""

    def __init__(self, line: Line, dialler: End, listener: End, rng: random.Random) -> None:
        self.line = line
        self.ends = (dialler, listener)
        self._rngs = {
            dialler.peer: random.Random(rng.getrandbits(64)),
            listener.peer: random.Random(rng.getrandbits(64)),
        }
        self._streams: dict[MemoryStream, None] = {}  # ordered, so that runs repeat

    def origin_of(self, peer: str) -> str:
        """The block of addresses that one of the two is in."""
        return next(end.origin for end in self.ends if end.peer == peer)

    def open(self, opener: str) -> tuple[MemoryStream, MemoryStream]:
        """The opener's end of a new stream, and the other."""
        a, b = (end.peer for end in self.ends)
        other = b if opener == a else a
        there, back = Pipe(self.line, self._rngs[opener]), Pipe(self.line, self._rngs[other])
        ours = MemoryStream(self, other, inbox=back, outbox=there)
        theirs = MemoryStream(self, opener, inbox=there, outbox=back)
        self._streams[ours] = self._streams[theirs] = None
        return ours, theirs

    def forget(self, stream: MemoryStream) -> None:
        """`stream` has ended by itself."""
        # The line's changes still matter to what is on its way to the other end, which is notified itself.
        self._streams.pop(stream, None)

    def notify(self) -> None:
        """The line has changed."""
        for stream in list(self._streams):
            stream.notify()

    def lose(self, peer: str, why: str, at: float = AT_ONCE) -> None:
        """End every stream at the end of `peer`, when the clock says `at`."""
        for stream in self._streams:
            if stream.peer != peer:
                stream.lose(why, at)
