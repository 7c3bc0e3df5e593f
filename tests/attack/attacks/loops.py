"""Sessions whose results come back to themselves."""

from __future__ import annotations

import secrets

import trio

from protocol.model import Span
from tests.attack import wire
from tests.attack.stranger import Field, Stranger, Talk, persist, stranger

RINGS = 8


async def ring(who: Stranger, field: Field, size: int) -> list[Talk]:
    """Sessions of one and the same span, each the next hop of the one before, the first of the last."""
    places = [field.nodes[2 * n % 4] for n in range(size)]
    span = Span(1, 3)
    ids = [secrets.token_bytes(16) for _ in places]
    talks = []
    for n, node in enumerate(places):
        following = (n + 1) % size
        then = wire.next_hop(places[following].peer, places[following].addrs, ids[following])
        talks.append(await who.open(node, span, next=then, session=ids[n]))
    return talks


async def _rings(field: Field, size: int, *, fill: bool = False) -> None:
    """Rings round which one step goes, or one fill."""

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            talks = await ring(who, field, size)
            for talk in talks:
                nursery.start_soon(talk.drain)
            await talks[0].step(8, fill_until=1024 if fill else None)
            await trio.sleep(30.0)

    async with trio.open_nursery() as nursery:
        for _ in range(RINGS):
            nursery.start_soon(persist, one, 0.5)


async def ring_of_one(field: Field) -> None:
    """A session that is its own next hop."""
    await _rings(field, 1)


async def ring_of_two(field: Field) -> None:
    """Two of one span."""
    await _rings(field, 2)


async def ring_of_three(field: Field) -> None:
    """Three of one span, two of them at one node."""
    await _rings(field, 3)


async def ring_of_fills(field: Field) -> None:
    """Two, and what goes round only rebuilds caches."""
    await _rings(field, 2, fill=True)


async def relinked_ring(field: Field) -> None:
    """Sessions that are made a ring of after their first step."""

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            talks = [await who.open(field.first, Span(1, 3)) for _ in range(2)]
            for talk in talks:
                nursery.start_soon(talk.drain)
            await talks[0].step(8)
            for talk, other in (talks, talks[::-1]):
                await talk.send(wire.relink(other.place))
            await trio.sleep(30.0)

    async with trio.open_nursery() as nursery:
        for _ in range(RINGS):
            nursery.start_soon(persist, one, 0.5)


ATTACKS = (ring_of_one, ring_of_two, ring_of_three, ring_of_fills, relinked_ring)
