"""What the transport's tests share: the implementations behind one handle."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.transport.base import Transport
from protocol.transport.libp2p import open_transport
from protocol.transport.memory import Network
from protocol.transport.validator import AcceptAll, DhtValidator

LOOPBACK = ("/ip4/127.0.0.1/udp/0/quic-v1",)


class Implementation(Protocol):
    """Makes peers that reach each other."""

    dead_addr: str  # where nobody listens

    def peer(self, validate: DhtValidator) -> AbstractAsyncContextManager[Transport]:
        """A new peer that listens."""


class Peers:
    """An implementation, and several peers of it at once."""

    def __init__(self, implementation: Implementation) -> None:
        self.dead_addr = implementation.dead_addr
        self._implementation = implementation

    @asynccontextmanager
    async def peers(self, count: int, validate: DhtValidator | None = None) -> AsyncIterator[list[Transport]]:
        """`count` transports that listen."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self._implementation.peer(validate or AcceptAll()))
                for _ in range(count)
            ]


class InMemory:
    """Peers of one memory network."""

    dead_addr = "/ip4/10.9.9.9/udp/4001/quic-v1"

    def __init__(self) -> None:
        self._network = Network(rng=random.Random(7), latency_s=0.001)

    @asynccontextmanager
    async def peer(self, validate: DhtValidator) -> AsyncIterator[Transport]:
        """A peer of this network."""
        async with self._network.transport(Ed25519PrivateKey.generate(), validate=validate) as transport:
            yield transport


class Libp2p:
    """Peers on loopback."""

    dead_addr = "/ip4/127.0.0.1/udp/9/quic-v1"

    @asynccontextmanager
    async def peer(self, validate: DhtValidator) -> AsyncIterator[Transport]:
        """A peer with a port of its own."""
        async with open_transport(
            Ed25519PrivateKey.generate(), listen=LOOPBACK, validate=validate
        ) as transport:
            yield transport


@pytest.fixture(params=[InMemory, Libp2p], ids=["memory", "libp2p"])
def net(request: pytest.FixtureRequest) -> Peers:
    """Each implementation in turn."""
    return Peers(request.param())
