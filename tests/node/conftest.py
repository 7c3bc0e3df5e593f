"""Hops over a memory network."""

from __future__ import annotations

import random

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.compute.loop import Executor
from node.hop.admission import Admission
from node.hop.neighbours import AddressesOf, Neighbours
from node.hop.seats import Room
from node.hop.server import HopServer
from protocol.messages import NextHop
from protocol.model import Span
from protocol.transport.memory import Network
from protocol.transport.memory.transport import MemoryTransport
from tests.node.fakes import Client, FakeEngine, InlineExecutor


class Node:
    """A hop with a fake engine, and what it is made of."""

    def __init__(
        self,
        transport: MemoryTransport,
        span: Span,
        executor: Executor,
        kv_tokens: int,
        addresses_of: AddressesOf,
        prefix_bytes: int,
    ) -> None:
        self.transport = transport
        self.engine = FakeEngine(span)
        self.budget = Admission(Room(kv_tokens))
        neighbours = Neighbours(transport, addresses_of)
        self.hop = HopServer(
            self.engine,
            transport,
            self.budget,
            neighbours=neighbours,
            executor=executor,
            prefix_bytes=prefix_bytes,
        )
        self.hop.serve()

    def as_next(self, client: Client) -> NextHop:
        """This node as the next hop, in the session that `client` has here."""
        return NextHop(self.transport.peer, client.session)


class Swarm:
    """Nodes and clients on one network."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = Network(rng=random.Random(1))
        self.met: dict[str, tuple[str, ...]] = {}  # where every node has met every other
        self._nursery = nursery

    async def transport(self, host: str | None = None) -> MemoryTransport:
        """A new peer, in a block of addresses of its own unless `host` is given."""
        made, here = trio.open_memory_channel[MemoryTransport](1)
        self._nursery.start_soon(self._hold_transport, made, host)
        return await here.receive()

    async def _hold_transport(self, made: trio.MemorySendChannel[MemoryTransport], host: str | None) -> None:
        async with self.network.transport(Ed25519PrivateKey.generate(), host=host) as transport:
            self.met[transport.peer] = transport.addrs
            made.send_nowait(transport)
            await trio.sleep_forever()

    async def node(
        self,
        span: Span,
        *,
        executor: Executor | None = None,
        kv_tokens: int = 1000,
        prefix_bytes: int = 0,
    ) -> Node:
        """A new node that serves `span`."""
        transport = await self.transport()
        return Node(
            transport,
            span,
            executor or InlineExecutor(),
            kv_tokens,
            lambda peer: self.met.get(peer, ()),
            prefix_bytes,
        )

    async def client(self, node: Node, host: str | None = None) -> Client:
        """A stream of a new peer to `node`."""
        return await Client.to(await self.transport(host), node.transport)


@pytest.fixture
def swarm(nursery: trio.Nursery) -> Swarm:
    """A network of its own for each test."""
    return Swarm(nursery)
