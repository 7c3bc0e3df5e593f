"""What attacks are made of: identities for nothing, records that lie, sessions that mean ill."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from protocol.candidates import Want
from protocol.codec import encode
from protocol.errors import Busy, Lost, SwarmError
from protocol.hints import RecordRule
from protocol.identity import Identity, generate
from protocol.messages import SESSION_PROTOCOL, Message, NextHop, Opened, Refused, Step
from protocol.model import Span
from protocol.records import Announcement, sign_record
from protocol.talk.channel import Channel
from protocol.talk.exchange import exchange_maps
from protocol.transport.addresses import parse_address
from protocol.transport.base import Stream, Transport
from protocol.transport.libp2p import open_transport
from tests.attack import wire

LOOPBACK = "/ip4/127.0.0.1/udp/0/quic-v1"
ANSWER_S = 30.0


@dataclass
class Field:
    """What an attacker has to go by: nodes, as they announce themselves, and what the attack is told besides."""

    nodes: list[Announcement]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> Announcement:
        """A node with the embedding."""
        return next(node for node in self.nodes if node.span.start == 0)

    @property
    def last(self) -> Announcement:
        """A node with the head."""
        return next(node for node in self.nodes if node.span.stop == node.stages)


class Talk:
    """The opener's end of a session that was granted, without regard to the rules of the protocol."""

    def __init__(self, channel: Channel, node: Announcement, span: Span, session: bytes) -> None:
        self.channel = channel  # what came right behind the grant is read from it
        self.stream = channel.stream
        self.node = node
        self.span = span
        self.session = session
        self._numbers = itertools.count()

    @property
    def place(self) -> NextHop:
        """This session as another's next hop."""
        return wire.next_hop(self.node.peer, self.node.addrs, self.session)

    async def send(self, *messages: Message) -> None:
        """As they are. Raises: Lost."""
        await self.stream.send(b"".join(map(encode, messages)))

    async def step(
        self, count: int = 1, position: int = 0, *, want: Want | None = None, fill_until: int | None = None
    ) -> None:
        """The next step, of `count` rows."""
        inputs = wire.rows(self.node, self.span, count)
        await self.send(Step(next(self._numbers), position, inputs, want or Want("nothing"), fill_until))

    async def drain(self) -> None:
        """Read whatever comes, until it ends."""
        while await self.stream.receive():
            pass


class Ghost:
    """An identity that signs and is nowhere."""

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity = identity or generate()

    def says(self, like: Announcement, **changes: Any) -> bytes:
        """A record of this identity that copies another's."""
        now = time.time()
        said = replace(
            like,
            peer=self.identity.peer,
            sequence=int(now * 1e6),
            issued=now,
            expires=now + 59.0,
            **changes,
        )
        return sign_record(self.identity, said).data


class Stranger(Ghost):
    """One identity and its transport."""

    def __init__(self, identity: Identity, transport: Transport) -> None:
        super().__init__(identity)
        self.transport = transport

    async def stream(self, node: Announcement, protocol: str = SESSION_PROTOCOL) -> Stream:
        """A stream on which nothing was said."""
        return await self.transport.open_stream(node.peer, node.addrs, protocol)

    async def open(
        self,
        node: Announcement,
        span: Span | None = None,
        *,
        max_tokens: int = 64,
        next: NextHop | None = None,
        bridged: bool = False,
        session: bytes | None = None,
    ) -> Talk:
        """A session. Raises: Busy, where it is refused; PeerUnavailable."""
        span, session = span or node.span, session or secrets.token_bytes(16)
        stream = await self.stream(node)
        asked = wire.opening(node, span, max_tokens, session=session, next=next, bridged=bridged)
        await stream.send(encode(asked))
        channel = Channel(stream)
        with trio.move_on_after(ANSWER_S):
            answer = await channel.receive()
            if isinstance(answer, Refused):
                raise Busy(f"{answer.code}: {answer.reason}", answer.retry_after_s)
            if isinstance(answer, Opened):
                return Talk(channel, node, span, session)
        stream.reset()
        raise Lost("no session")

    async def push(self, node: Announcement, records: Sequence[bytes]) -> None:
        """Give records to a node. Raises: PeerUnavailable."""
        await exchange_maps(self.transport, node.peer, node.addrs, tuple(records))


@asynccontextmanager
async def stranger(*, listens: bool = False, identity: Identity | None = None) -> AsyncIterator[Stranger]:
    """A new identity in the network."""
    me = identity or generate()
    listen = [LOOPBACK] if listens else []
    async with open_transport(me.key, listen=listen, dht="client", validate=RecordRule()) as transport:
        yield Stranger(me, transport)


async def persist(action: Callable[[], Awaitable[object]], every_s: float = 0.0) -> None:
    """Do it for ever, whatever peers say to it."""
    while True:
        await try_to(action)
        await trio.sleep(every_s)


async def try_to(action: Callable[[], Awaitable[object]]) -> bool:
    """Do it; whether no peer objected, here or in a nursery inside."""
    objected = False
    try:
        await action()
    except* (SwarmError, trio.TooSlowError):
        objected = True
    return not objected


def host_and_port(addr: str) -> tuple[str, int]:
    """Of a multiaddr."""
    address = parse_address(addr)
    return address.host, address.port
