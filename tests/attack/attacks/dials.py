"""Making nodes send packets to somebody who has not asked for them. `victims` are the addresses of third parties."""

from __future__ import annotations

from functools import partial

import trio

from protocol.model import Span
from tests.attack import wire
from tests.attack.stranger import Field, Ghost, Talk, persist, stranger

RELINKS = 60


async def _relink_to(field: Field, addrs: list[str], *, known: bool) -> None:
    """Sessions are relinked again and again to peers that are said to be there.

    `known`: a record of the peer, with those addresses, was given to the node before.
    """

    async def through(talk: Talk) -> None:
        while True:
            for _ in range(RELINKS):
                await talk.send(wire.relink(wire.next_hop(Ghost().identity.peer, addrs)))
            await trio.sleep(0.5)

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            for node in field.nodes:
                if node.span.start:
                    continue
                ghosts = [Ghost() for _ in range(16 if known else 1)]
                if known:
                    await who.push(node, [ghost.says(node, addrs=tuple(addrs)) for ghost in ghosts])
                for ghost in ghosts:
                    then = wire.next_hop(ghost.identity.peer, () if known else addrs)
                    talk = await who.open(node, Span(0, 2), max_tokens=8, next=then)
                    nursery.start_soon(talk.drain)
                    if not known:
                        nursery.start_soon(through, talk)
            await trio.sleep(4.0)
            nursery.cancel_scope.cancel()

    await persist(one, 0.2)


async def relinks_to_a_victim(field: Field) -> None:
    """Peers that nobody knows, sixteen addresses each."""
    await _relink_to(field, field.options["victims"], known=False)


async def records_then_links(field: Field) -> None:
    """Peers whose records the node holds."""
    await _relink_to(field, field.options["victims"], known=True)


async def relinks_to_names(field: Field) -> None:
    """Addresses that have to be looked up first."""
    port = field.options["port"]
    names = [
        f"/dns4/localhost/udp/{port}/quic-v1",
        *(f"/dns/x{n}.invalid/udp/{port}/quic-v1" for n in range(15)),
    ]
    await _relink_to(field, names, known=False)


async def relinks_of_a_known_peer(field: Field) -> None:
    """The peer exists, the addresses said of it are another's."""

    async def one() -> None:
        async with stranger(listens=True) as me, stranger() as who, trio.open_nursery() as nursery:
            talk = await who.open(field.first, Span(0, 2), max_tokens=8)
            nursery.start_soon(talk.drain)
            for _ in range(RELINKS):
                await talk.send(wire.relink(wire.next_hop(me.identity.peer, field.options["victims"])))
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(partial(persist, one, 0.1))


ATTACKS = (relinks_to_a_victim, records_then_links, relinks_to_names, relinks_of_a_known_peer)
