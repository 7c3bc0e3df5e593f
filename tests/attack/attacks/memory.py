"""What makes a node hold more than it has promised."""

from __future__ import annotations

from functools import partial

import trio

from protocol.candidates import Want
from protocol.messages import MAP_PROTOCOL, MODEL_PROTOCOL, SESSION_PROTOCOL
from protocol.model import Span
from tests.attack import wire
from tests.attack.stranger import Field, Ghost, persist, stranger

EVERYTHING = Want("candidates", every=True, top=0)


async def unread_candidates(field: Field) -> None:
    """Twelve small sessions ask for all logits of every position, and nobody reads them."""

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            for _ in range(6):
                for node in field.nodes:
                    if node.span.stop == node.stages:
                        talk = await who.open(node, max_tokens=128)
                        for _ in range(64):
                            nursery.start_soon(partial(talk.step, 128, want=EVERYTHING))
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(persist, one, 0.2)


async def read_candidates(field: Field) -> None:
    """The same read to the end: what a hop keeps of outputs, to send them again, is then at its fullest."""

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            talks = [await who.open(field.last, max_tokens=128) for _ in range(12)]
            for talk in talks:
                nursery.start_soon(talk.drain)
            while True:
                for talk in talks:
                    await talk.step(128, want=EVERYTHING)

    await persist(one, 0.2)


async def sessions_opened_and_closed(field: Field) -> None:
    """Five hundred sessions, each with a full cache and then gone."""
    count = 0

    async def one() -> None:
        nonlocal count
        async with stranger() as who:
            while True:
                node = field.nodes[count % 4]
                talk = await who.open(node, max_tokens=512)
                await talk.step(512)
                talk.stream.reset()
                count += 1
                if count % 100 == 0:
                    print(f"{count} sessions", flush=True)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(persist, one)


async def half_frames_before(field: Field) -> None:
    """Frames of the largest kind that a stranger may send, all but for their last byte, on every protocol."""
    body = (4 << 20) - 1
    frame = body.to_bytes(4, "big") + bytes(body - 1)

    async def one(protocol: str, pieces: int) -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            for n in range(pieces):
                stream = await who.stream(field.nodes[n % 4], protocol)
                nursery.start_soon(persist, partial(stream.send, frame), 5.0)
            await trio.sleep(8.0)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for protocol in (SESSION_PROTOCOL, MAP_PROTOCOL, MODEL_PROTOCOL):
            for _ in range(2):
                nursery.start_soon(persist, partial(one, protocol, 64), 0.1)


async def half_frames_after(field: Field) -> None:
    """The same inside sessions, whose frames may be larger."""

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            for n in range(64):
                node = field.nodes[n % 4]
                talk = await who.open(node, max_tokens=1)
                body = 512 * node.hidden_size * 4 + 32 * 1024
                nursery.start_soon(talk.stream.send, body.to_bytes(4, "big") + bytes(body - 1))
            await trio.sleep(8.0)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(persist, one, 0.1)


async def journals(field: Field) -> None:
    """Sessions that nobody is behind, whose rows are kept for a replacement that never comes."""

    async def one() -> None:
        async with stranger() as who, trio.open_nursery() as nursery:
            for n in range(16):
                node = field.nodes[2 * n % 4]
                gone = wire.next_hop(Ghost().identity.peer, ("/ip4/127.0.0.1/udp/9/quic-v1",))
                talk = await who.open(node, Span(1, 4), max_tokens=512, next=gone)
                nursery.start_soon(talk.drain)
                for position in (0, 0, 0, 0):
                    await talk.step(512, position)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(persist, one, 0.2)


ATTACKS = (
    unread_candidates,
    read_candidates,
    sessions_opened_and_closed,
    half_frames_before,
    half_frames_after,
    journals,
)
