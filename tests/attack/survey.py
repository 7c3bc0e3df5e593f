"""How an attack begins and ends: what the nodes say of themselves, and that nobody waits any more."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from protocol.records import Announcement, parse_record
from protocol.talk.exchange import exchange_maps
from protocol.transport.addresses import parse_address
from tests.attack.stranger import Field, stranger


@asynccontextmanager
async def ending_with_parent() -> AsyncIterator[None]:
    """Within it the process ends soon after whoever started it: no attacker is left over."""

    async def look() -> None:
        while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(1.0)
        os._exit(1)

    parent = os.getppid()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        yield
        nursery.cancel_scope.cancel()


async def survey(addrs: Sequence[str], **options: Any) -> Field:
    """The nodes at these addresses, in their order."""
    nodes: list[Announcement] = []
    async with stranger() as spy:
        for addr in addrs:
            peer = parse_address(addr).peer
            assert peer is not None
            records, _ = await exchange_maps(spy.transport, peer, [addr])
            said = parse_record(records[0], time.time()).announcement
            assert said.peer == peer
            nodes.append(said)
    return Field(nodes, options)
