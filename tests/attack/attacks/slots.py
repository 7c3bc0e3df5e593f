"""Taking the places there are, and not using them; or using them as no honest peer would."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from protocol.candidates import Want
from protocol.codec import encode
from protocol.identity import generate
from protocol.messages import (
    MAP_PROTOCOL,
    MODEL_PROTOCOL,
    SESSION_PROTOCOL,
    WEIGHTS_PROTOCOL,
    FileRequest,
    HoldingsReply,
    HoldingsRequest,
    ManifestRequest,
    ParcelRequest,
    Ping,
)
from protocol.records import Announcement
from protocol.talk.channel import Channel
from protocol.talk.weights import ask_inventory, next_parcel
from protocol.transport.quic.connection import Connection
from protocol.transport.quic.endpoint import Endpoint, open_endpoint
from tests.attack import wire
from tests.attack.stranger import Field, Stranger, host_and_port, persist, stranger, try_to

Session = Callable[[Stranger, Announcement], Awaitable[None]]


async def crowd(field: Field, count: int, act: Session, every_s: float = 0.05) -> None:
    """`count` identities do the same to every node, for ever."""

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            for node in field.nodes:
                nursery.start_soon(persist, partial(act, who, node), every_s)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(persist, one)


def at_once(count: int, act: Session, how: Callable[..., Awaitable[object]]) -> Session:
    """`act`, so many times beside each other, each run by `how`."""

    async def many(who: Stranger, node: Announcement) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(how, partial(act, who, node))

    return many


async def silent_maps(field: Field) -> None:
    """Streams that ask for the map and do not say so."""

    async def act(who: Stranger, node: Announcement) -> None:
        stream = await who.stream(node, MAP_PROTOCOL)
        await stream.send(b"")
        await trio.sleep(9.0)
        stream.reset()

    async def many(who: Stranger, node: Announcement) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(act, who, node)

    await crowd(field, 4, many)


async def idle_model_conversations(field: Field) -> None:
    """Conversations about the model that stop after a word."""

    async def act(who: Stranger, node: Announcement) -> None:
        streams = []
        for _ in range(16):
            stream = await who.stream(node, MODEL_PROTOCOL)
            streams.append(stream)
            await stream.send(encode(ManifestRequest(node.digest)))
        while streams:
            await trio.sleep(4.0)
            for stream in streams:
                await stream.send(encode(ManifestRequest(node.digest)))

    await crowd(field, 4, act)


async def unread_files(field: Field) -> None:
    """Files that are asked for and not read."""

    async def act(who: Stranger, node: Announcement) -> None:
        stream = await who.stream(node, MODEL_PROTOCOL)
        asked = encode(ManifestRequest(node.digest)) + 200 * encode(FileRequest("tokenizer.json"))
        await stream.send(asked)
        await trio.sleep(4.0)
        stream.reset()

    await crowd(field, 12, act)


async def unread_weights(field: Field) -> None:
    """Parcels that are asked for by the thousand and not read, and inventories."""

    async def act(who: Stranger, node: Announcement) -> None:
        stream = await who.stream(node, WEIGHTS_PROTOCOL)
        async with Channel(stream) as channel:
            await channel.send(HoldingsRequest(node.digest))
            held = await channel.expect(HoldingsReply, 5.0)
            digest = next(digest for digest in held.stages if digest is not None)
            inventory = await ask_inventory(channel, digest)
            parcels = [ParcelRequest(parcel.hash) for parcel in inventory.parcels()]
            await channel.send(*(parcels * 1000)[:1000])
            await trio.sleep(4.0)

    await crowd(field, 12, act)


async def thirsty_for_weights(field: Field) -> None:
    """Everything that a node gives, over and over, by many at once."""

    async def act(who: Stranger, node: Announcement) -> None:
        stream = await who.stream(node, WEIGHTS_PROTOCOL)
        async with Channel(stream) as channel:
            await channel.send(HoldingsRequest(node.digest))
            held = await channel.expect(HoldingsReply, 5.0)
            while True:
                for digest in filter(None, held.stages):
                    for parcel in (await ask_inventory(channel, digest)).parcels():
                        await channel.send(ParcelRequest(parcel.hash))
                        await next_parcel(channel, parcel.size)

    await crowd(field, 12, act)


async def many_sessions(field: Field) -> None:
    """Every session that there is room for, of one token each."""
    granted = 0

    async def act(who: Stranger, node: Announcement) -> None:
        nonlocal granted
        talk = await who.open(node, max_tokens=1)
        granted += 1
        if granted % 64 == 0:
            print(f"{granted} sessions granted", flush=True)
        talk_until = trio.current_time() + 30.0
        while trio.current_time() < talk_until:
            await talk.send(Ping(1))
            await trio.sleep(1.0)

    await crowd(field, 5, at_once(80, act, try_to))


async def hoarded_cache(field: Field) -> None:
    """All KV cache that there is, held by sessions that compute nothing."""
    granted = 0

    async def act(who: Stranger, node: Announcement) -> None:
        nonlocal granted
        talk = await who.open(node, max_tokens=512)
        granted += 1
        if granted % 16 == 0:
            print(f"{granted} times 512 tokens granted", flush=True)
        await talk.drain()

    await crowd(field, 3, at_once(20, act, partial(persist, every_s=0.2)))


async def hoarded_cache_in_use(field: Field) -> None:
    """The same, with a step now and then in each."""

    async def act(who: Stranger, node: Announcement) -> None:
        talk = await who.open(node, max_tokens=512)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.drain)
            while True:
                await talk.step(1)
                await trio.sleep(1.0)

    await crowd(field, 3, at_once(20, act, partial(persist, every_s=0.2)))


async def attach_waiters(field: Field) -> None:
    """Streams that wait for sessions that nobody will open."""

    async def act(who: Stranger, node: Announcement) -> None:
        stream = await who.stream(node)
        await stream.send(encode(wire.attach(secrets.token_bytes(16), node.span.start)))
        while await stream.receive():
            pass

    await crowd(field, 4, at_once(40, act, persist))


async def busy_peer(field: Field) -> None:
    """One peer computes in sixty sessions at once."""

    async def act(who: Stranger, node: Announcement) -> None:
        talk = await who.open(node, max_tokens=130)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.drain)
            while True:
                await talk.step(128, want=Want("nothing"))

    async with stranger() as who, trio.open_nursery() as nursery:
        for n in range(60):
            nursery.start_soon(persist, partial(act, who, field.nodes[n % 4]), 0.2)


async def busy_crowd(field: Field) -> None:
    """The same by twenty peers, three sessions each."""

    async def act(who: Stranger, node: Announcement) -> None:
        talk = await who.open(node, max_tokens=130)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.drain)
            while True:
                await talk.step(128, want=Want("nothing"))

    async def one(number: int) -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            for n in range(3):
                nursery.start_soon(persist, partial(act, who, field.nodes[(number + n) % 4]), 0.2)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)


async def unread_pongs(field: Field) -> None:
    """Pings by the thousand, whose answers nobody reads."""

    async def act(who: Stranger, node: Announcement) -> None:
        talk = await who.open(node, max_tokens=8)
        with trio.move_on_after(5.0):
            while True:
                await talk.send(*(Ping(n) for n in range(500)))

    await crowd(field, 2, act)


# --- below the protocols: bare connections


async def many_connections(field: Field) -> None:
    """Six hundred connections of 160 identities to one node, kept alive."""
    made = 0

    async def one() -> None:
        nonlocal made
        async with open_endpoint(generate().key) as endpoint:
            for _ in range(4):
                await _dial(endpoint, field.first)
                made += 1
                if made % 64 == 0:
                    print(f"{made} connections", flush=True)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(160):
            nursery.start_soon(persist, one, 1.0)
            await trio.sleep(0.02)


async def nameless_streams(field: Field) -> None:
    """Streams that never say which protocol they want."""

    async def act(connection: Connection) -> None:
        stream = await connection.open_stream()
        await stream.send(b"\x13/multistream/1.0.0\n"[:7])
        await trio.sleep(9.0)
        stream.reset()

    async def one() -> None:
        async with _connections(field, 1) as (connections, nursery):
            for connection in connections:
                for _ in range(200):
                    nursery.start_soon(persist, partial(act, connection))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(persist, one, 0.5)


async def rapid_reset(field: Field) -> None:
    """Streams that are opened and reset, as fast as it goes."""
    count = 0

    async def act(connection: Connection) -> None:
        nonlocal count
        stream = await connection.open_stream()
        await stream.send(b"\x13/multistream/1.0.0\n\x11" + SESSION_PROTOCOL.encode() + b"\n")
        stream.reset()
        count += 1
        if count % 1000 == 0:
            print(f"{count} streams", flush=True)

    async def one() -> None:
        async with _connections(field, 1) as (connections, nursery):
            for connection in connections:
                nursery.start_soon(persist, partial(act, connection))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(persist, one, 0.5)


@asynccontextmanager
async def _connections(field: Field, each: int) -> AsyncIterator[tuple[list[Connection], trio.Nursery]]:
    """Connections of a new identity to every node."""
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(open_endpoint(generate().key))
        nursery = await stack.enter_async_context(trio.open_nursery())
        yield [await _dial(endpoint, node) for node in field.nodes for _ in range(each)], nursery


async def _dial(endpoint: Endpoint, node: Announcement) -> Connection:
    host, port = host_and_port(node.addrs[0])
    return await endpoint.dial(host, port, node.peer)


ATTACKS = (
    silent_maps,
    idle_model_conversations,
    unread_files,
    unread_weights,
    thirsty_for_weights,
    many_sessions,
    hoarded_cache,
    hoarded_cache_in_use,
    attach_waiters,
    busy_peer,
    busy_crowd,
    unread_pongs,
    many_connections,
    nameless_streams,
    rapid_reset,
)
