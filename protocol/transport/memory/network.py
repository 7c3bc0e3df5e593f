"""A network in memory, and the way in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.transport.background import background_tasks
from protocol.transport.memory.links import Links
from protocol.transport.memory.transport import MemoryTransport
from protocol.transport.peer_id import peer_id_of
from protocol.transport.validator import AcceptAll, DhtValidator


class Network(Links):
    """Links, and the transports of peers between which they lie."""

    @asynccontextmanager
    async def transport(
        self,
        identity: Ed25519PrivateKey,
        *,
        listen: bool = True,
        host: str | None = None,
        validate: DhtValidator | None = None,
    ) -> AsyncIterator[MemoryTransport]:
        """A peer's place in this network until the context ends; `listen=False` for one that only dials.

        `host` is its IPv4 address (default: one in a block of its own).
        """
        peer = peer_id_of(identity.public_key())
        place = self.settle(peer, host)
        async with background_tasks() as nursery:
            addrs = (place,) if listen else ()
            transport = MemoryTransport(self, nursery, peer, addrs, validate or AcceptAll())
            self.enter(transport)
            try:
                yield transport
            finally:
                self.leave(transport)
