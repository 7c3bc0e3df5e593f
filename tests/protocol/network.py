"""Two peers on a memory network, one of them written by the test: honest, silent or hostile."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from protocol.transport.base import Handler, Stream
from protocol.transport.memory import Network
from protocol.transport.memory.transport import MemoryTransport
from tests.protocol.samples import IDENTITY, OTHER


@asynccontextmanager
async def two_peers(
    protocol: str, handler: Handler
) -> AsyncIterator[tuple[MemoryTransport, MemoryTransport]]:
    """A client and a server that runs `handler` for each stream of `protocol`.

    An error of the body comes out as it is, not in the groups of the transports' nurseries.
    """
    network = Network(rng=random.Random(1), latency_s=0.01)
    try:
        async with network.transport(IDENTITY.key) as client, network.transport(OTHER.key) as server:
            server.serve(protocol, handler)
            yield client, server
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


async def say_nothing(stream: Stream) -> None:
    """Take everything and never answer."""
    while await stream.receive():
        pass
    await trio.sleep_forever()
