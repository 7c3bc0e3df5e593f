"""Nodes over real QUIC in this process: torch is imported once, so many small swarms fit in one test run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from node.backend import open_backend
from node.config import NodeConfig
from node.daemon import Node
from protocol import identity as identities
from protocol.hints import RecordRule
from protocol.transport.libp2p import open_transport
from tests.support.local_swarm import LOOPBACK

READY_S = 60.0


@asynccontextmanager
async def running_nodes(
    model: Path,
    layers: Sequence[tuple[int, int]],
    join: Sequence[str] = (),
    *,
    quant: str | None = None,
    engine: str = "auto",
) -> AsyncIterator[list[str]]:
    """Nodes of these layers that all know each other, and those that they `join`; their addresses."""
    addrs: list[str] = []
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for span in layers:
            identity = identities.generate()
            transport = await stack.enter_async_context(
                open_transport(identity.key, listen=[LOOPBACK], validate=RecordRule())
            )
            config = NodeConfig(
                str(model),
                layers=span,
                join=tuple(join or addrs[:1]),
                quant=quant,
                engine=engine,
                kv_tokens=4096,
                threads=1,
            )
            node = Node(config, identity, transport, open_backend, lambda _: None)
            nursery.start_soon(node.run)
            with trio.fail_after(READY_S):
                await node.ready.wait()
            addrs.append(transport.addrs[0])
        yield addrs
        nursery.cancel_scope.cancel()
