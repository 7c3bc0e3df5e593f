"""Signed lies: votes on weights, names of models, addresses of third parties, and sheer numbers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import trio

from protocol import limits
from protocol.messages import MAP_PROTOCOL, SESSION_PROTOCOL, MapReply, MapRequest
from protocol.records import Announcement, RoundTrip
from protocol.talk.channel import Channel
from protocol.transport.base import Stream
from tests.attack.stranger import Field, Ghost, Stranger, persist, stranger, try_to

VOTERS = 9
AT_ONCE = 48  # records in one push: what a node's own gossip pushes
PUSHES_OF_ONE = 16  # fewer than a node allows a peer at once
NASTY = (
    "\x1b[2J\x1b]0;owned\x07",
    "a\nready 12D3KooWfake",
    "\u202egnp.exe",
    "{{ ''.__class__.__mro__ }}",
    "$(reboot)",
    "../../../etc/passwd",
    "%s%s%n",
    "[bold red]hello[/bold red]",
    "\ufeff\u2028\u2029",
    "a" * 200,
)


async def spread(who: Stranger, nodes: Sequence[Announcement], records: Sequence[bytes]) -> None:
    """Give all records to all nodes, in pieces."""
    for start in range(0, len(records), AT_ONCE):
        for node in nodes:
            await try_to(partial(who.push, node, records[start : start + AT_ONCE]))


async def repeat(field: Field, make: Callable[[], list[bytes]], every_s: float = 2.0) -> None:
    """Give what `make` returns to all nodes at once, again and again, under new identities: no allowance counts."""

    async def give(node: Announcement, records: list[bytes]) -> None:
        async with stranger() as pusher:
            await spread(pusher, [node], records)

    async def once() -> None:
        records = make()
        size = AT_ONCE * PUSHES_OF_ONE
        async with trio.open_nursery() as nursery:
            for node in field.nodes:
                for start in range(0, len(records), size):
                    nursery.start_soon(give, node, records[start : start + size])

    await persist(once, every_s)


async def invented_voters(field: Field) -> None:
    """Peers that do not exist say, of every stage, that its weights are others."""
    voters = [Ghost() for _ in range(VOTERS)]
    await repeat(field, lambda: [_other_weights(voter, node) for voter in voters for node in field.nodes[:2]])


async def listening_voters(field: Field) -> None:
    """The same from peers that listen and hand out maps, but serve nobody."""
    async with AsyncExitStack() as stack:
        voters = [await stack.enter_async_context(stranger(listens=True)) for _ in range(VOTERS)]
        records: list[bytes] = []

        async def hand_out_maps(stream: Stream) -> None:
            async with Channel(stream) as channel:
                await channel.expect(MapRequest, limits.CONTROL_TIMEOUT_S)
                own = [_other_weights(voter, field.first, addrs=voter.transport.addrs) for voter in voters]
                await channel.send(MapReply(tuple(own)))

        async def hang(stream: Stream) -> None:
            await trio.sleep_forever()

        for voter in voters:
            voter.transport.serve(MAP_PROTOCOL, hand_out_maps)
            voter.transport.serve(SESSION_PROTOCOL, hang)

        async def vote() -> None:
            records[:] = [
                _other_weights(voter, node, addrs=voter.transport.addrs)
                for voter in voters
                for node in field.nodes[:2]
            ]
            for voter in voters:
                await spread(voter, field.nodes, records)

        await persist(vote, 2.0)


async def vouchers(field: Field) -> None:
    """Peers that do not exist confirm the weights of the one node whose weights are wrong."""
    odd = next(node for node in field.nodes if node.peer == field.options["odd"])
    voters = [Ghost() for _ in range(VOTERS)]
    await repeat(field, lambda: [voter.says(odd, addrs=()) for voter in voters])


async def listening_vouchers(field: Field) -> None:
    """The same from peers that listen and answer for the map."""
    odd = next(node for node in field.nodes if node.peer == field.options["odd"])
    async with AsyncExitStack() as stack:
        voters = [await stack.enter_async_context(stranger(listens=True)) for _ in range(VOTERS)]

        def says() -> list[bytes]:
            return [voter.says(odd, addrs=voter.transport.addrs) for voter in voters]

        async def hand_out_maps(voter: Stranger, stream: Stream) -> None:
            async with Channel(stream) as channel:
                await channel.expect(MapRequest, limits.CONTROL_TIMEOUT_S)
                own_first = sorted(says(), key=lambda data: voter.identity.peer.encode() not in data)
                await channel.send(MapReply(tuple(own_first)))

        async def vote() -> None:
            for voter in voters:
                await spread(voter, field.nodes, says())

        for voter in voters:
            voter.transport.serve(MAP_PROTOCOL, partial(hand_out_maps, voter))
        await persist(vote, 2.0)


async def another_model(field: Field) -> None:
    """Records of a second model, and of one that has the first one's name."""
    voters = [Ghost() for _ in range(VOTERS)]
    other, namesake = secrets.token_bytes(32), secrets.token_bytes(32)

    def make() -> list[bytes]:
        lies = [voter.says(field.first, digest=other, model="other") for voter in voters]
        return lies + [voter.says(field.first, digest=namesake) for voter in voters[:2]]

    await repeat(field, make)


async def dead_records(field: Field) -> None:
    """Four thousand nodes that are faster than anybody and do not exist."""
    speeds = {"decode_ms": 0.0, "prefill_ms": 0.0, "head_ms": 0.0, "queue_ms": 0.0}
    ghosts = [Ghost() for _ in range(4000)]
    addrs = ("/ip4/127.0.0.1/udp/9/quic-v1",)

    def make() -> list[bytes]:
        return [ghost.says(field.nodes[n % 2], addrs=addrs, **speeds) for n, ghost in enumerate(ghosts)]

    await repeat(field, make)


async def more_than_a_book_holds(field: Field) -> None:
    """Nine thousand records that outlive the honest ones: who is forgotten first?"""
    ghosts = [Ghost() for _ in range(9000)]
    await repeat(field, lambda: [ghost.says(field.nodes[n % 4], addrs=()) for n, ghost in enumerate(ghosts)])


async def records_of_a_victim(field: Field) -> None:
    """Four hundred peers say that they are at the address of somebody else."""
    ghosts = [Ghost() for _ in range(400)]
    addrs = tuple(field.options["victims"])
    await repeat(
        field, lambda: [ghost.says(field.nodes[n % 4], addrs=addrs) for n, ghost in enumerate(ghosts)]
    )


async def nasty_records(field: Field) -> None:
    """Every text of a record is what a terminal, a template or a shell might stumble over."""
    ghosts = [Ghost() for _ in NASTY]

    def make() -> list[bytes]:
        return [
            ghost.says(
                field.first, model=text, addrs=(text, *field.first.addrs), links=(RoundTrip(text[:60], 1.0),)
            )
            for ghost, text in zip(ghosts, NASTY, strict=True)
        ]

    await repeat(field, make)


async def records_of_others(field: Field) -> None:
    """Replayed, forged and inconsistent records of the honest nodes themselves."""
    forged_by = Ghost()
    forger = forged_by.identity

    def make() -> list[bytes]:
        forged = [forged_by.says(node) for node in field.nodes]
        names = [(forger.peer.encode(), node.peer.encode()) for node in field.nodes]
        return [data.replace(*name) for data, name in zip(forged, names, strict=True)]

    await repeat(field, make)


def _other_weights(voter: Ghost, node: Announcement, **changes: Any) -> bytes:
    return voter.says(node, **{"addrs": (), "weights": tuple(b"otherone" for _ in node.weights), **changes})


ATTACKS = (
    invented_voters,
    listening_voters,
    vouchers,
    listening_vouchers,
    another_model,
    dead_records,
    more_than_a_book_holds,
    records_of_a_victim,
    nasty_records,
    records_of_others,
)
