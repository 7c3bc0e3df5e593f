"""Weights given to strangers, within bounds."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.presence.giver import STREAMS, STREAMS_BURST, Giver
from node.presence.shelf import Shelf
from node.presence.upload import BUSY_SHARE, SLICE_BYTES, Upload
from protocol import limits
from protocol.codec import encode
from protocol.errors import Lost, RemoteProtocolError
from protocol.messages import (
    WEIGHTS_PROTOCOL,
    Error,
    HoldingsRequest,
    InventoryRequest,
    Message,
    ParcelReply,
    ParcelRequest,
)
from protocol.talk.channel import Channel
from protocol.talk.weights import ask_holdings, ask_inventory, check_parcel, next_parcel, open_weights
from protocol.transport.memory.transport import MemoryTransport
from tests.node.conftest import Swarm
from tests.node.fetch.conftest import MIB, Stage, make_stage
from tests.support.waiting import eventually

MODEL = bytes(range(32))
FAST = 1e9


@pytest.fixture
def stage() -> Stage:
    """Of several parcels."""
    return make_stage({"a": 2 * MIB + 1, "b": 5})


async def giving(
    swarm: Swarm, stage: Stage, folder: Path, upload: Upload | None = None
) -> tuple[MemoryTransport, Giver, MemoryTransport]:
    """A node that gives the second of four stages, and a peer that may ask."""
    node, peer = await swarm.transport(), await swarm.transport()
    shelf = Shelf(MODEL, 4)
    with stage.whole(folder) as file:
        starts = {name: (path, tensor.start) for name, (path, tensor) in file.stored().items()}
    shelf.put(1, stage.inventory, starts)
    giver = Giver(shelf, upload or Upload(FAST))
    giver.serve(node)
    return node, giver, peer


async def ask(peer: MemoryTransport, node: MemoryTransport) -> Channel:
    """A conversation."""
    return await open_weights(peer, node.peer, node.addrs)


async def test_everything_is_given(swarm: Swarm, stage: Stage, tmp_path: Path) -> None:
    """What is held, what it consists of, and every parcel, asked for at once."""
    node, giver, peer = await giving(swarm, stage, tmp_path)
    async with await ask(peer, node) as channel:
        assert await ask_holdings(channel, MODEL, 4) == {1: stage.digest}
        assert await ask_inventory(channel, stage.digest) == stage.inventory
        parcels = list(stage.inventory.parcels())
        for parcel in parcels:
            await channel.send(ParcelRequest(parcel.hash))
        for parcel in parcels:
            assert await next_parcel(channel, parcel.size) == stage.parcels[parcel.hash]
    assert giver.given_bytes == stage.inventory.size


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (HoldingsRequest(bytes(32)), "model"),
        (InventoryRequest(bytes(8)), "stage"),
        (ParcelRequest(bytes(32)), "parcel"),
    ],
)
async def test_what_is_not_here(
    swarm: Swarm, stage: Stage, tmp_path: Path, request_: Message, what: str
) -> None:
    """Is said to be elsewhere, and that is the end."""
    node, _, peer = await giving(swarm, stage, tmp_path)
    async with await ask(peer, node) as channel:
        await channel.send(request_)
        error = await channel.expect(Error, 5)
        assert (error.code, error.elsewhere) == (f"unknown_{what}", True)
        assert await channel.receive() is None


async def test_holdings_of_another_number_of_stages(swarm: Swarm, stage: Stage, tmp_path: Path) -> None:
    """Whoever speaks of more stages than the model has is not believed."""
    node, _, peer = await giving(swarm, stage, tmp_path)
    async with await ask(peer, node) as channel:
        with pytest.raises(RemoteProtocolError):
            await ask_holdings(channel, MODEL, 5)


async def test_a_file_that_has_gone(swarm: Swarm, stage: Stage, tmp_path: Path) -> None:
    """Ends that conversation alone."""
    node, _, peer = await giving(swarm, stage, tmp_path)
    await trio.to_thread.run_sync(shutil.rmtree, tmp_path)
    async with await ask(peer, node) as channel:
        await channel.send(ParcelRequest(next(iter(stage.parcels))))
        with pytest.raises(Lost):
            await next_parcel(channel, MIB)
    async with await ask(peer, node) as channel:
        assert await ask_holdings(channel, MODEL, 4)


def test_a_wrong_parcel_is_malformed(stage: Stage) -> None:
    """One bit is enough."""
    hash_, data = next(iter(stage.parcels.items()))
    check_parcel(data, hash_, "peer")
    with pytest.raises(RemoteProtocolError, match="not the one asked for"):
        check_parcel(bytes([data[0] ^ 1]) + data[1:], hash_, "peer")


async def test_a_long_request_is_refused_at_its_first_bytes(
    swarm: Swarm, stage: Stage, tmp_path: Path
) -> None:
    """Nobody makes the node hold more than a digest."""
    node, _, peer = await giving(swarm, stage, tmp_path)
    stream = await peer.open_stream(node.peer, node.addrs, WEIGHTS_PROTOCOL)
    await stream.send((limits.WEIGHTS_REQUEST_BYTES + 1).to_bytes(4, "big"))
    with trio.fail_after(2), pytest.raises(Lost):
        await stream.receive()


async def test_who_reads_nothing_locks_nobody_out(swarm: Swarm, stage: Stage, tmp_path: Path) -> None:
    """More than there are places for ask for parcels and take none of them; they come to who takes them."""
    node, giver, peer = await giving(swarm, stage, tmp_path)
    parcel = max(stage.inventory.parcels(), key=lambda parcel: parcel.size)
    request = encode(ParcelRequest(parcel.hash)) * 20
    for _ in range(5):
        cheat = await swarm.transport()
        for _ in range(5):
            stream = await cheat.open_stream(node.peer, node.addrs, WEIGHTS_PROTOCOL)
            await stream.send(request)
    await eventually(lambda: len(giver._slots) == STREAMS)
    async with await ask(peer, node) as channel:
        await channel.send(ParcelRequest(parcel.hash))
        with trio.fail_after(5):
            assert await next_parcel(channel, parcel.size) == stage.parcels[parcel.hash]


async def test_who_comes_again_and_again(swarm: Swarm, stage: Stage, tmp_path: Path) -> None:
    """Is turned away for a while, and nobody else."""
    node, _, peer = await giving(swarm, stage, tmp_path)
    for _ in range(STREAMS_BURST):
        async with await ask(peer, node) as channel:
            await ask_holdings(channel, MODEL, 4)
    with pytest.raises(Lost):
        async with await ask(peer, node) as channel:
            await ask_holdings(channel, MODEL, 4)
    async with await ask(await swarm.transport(), node) as channel:
        assert await ask_holdings(channel, MODEL, 4)


async def test_odd_messages_end_the_conversation(swarm: Swarm, stage: Stage, tmp_path: Path) -> None:
    """What is no request for weights is not answered."""
    node, _, peer = await giving(swarm, stage, tmp_path)
    for odd in (encode(ParcelReply(b"x")), encode(Error("x", "y", False)), b"\0\0\0\1\xc1"):
        stream = await peer.open_stream(node.peer, node.addrs, WEIGHTS_PROTOCOL)
        await stream.send(encode(HoldingsRequest(MODEL)) + odd)
        with trio.fail_after(2), suppress(Lost):
            while await stream.receive():
                pass


# --- how fast


async def test_the_rate_is_kept(autojump_clock: MockClock) -> None:
    """Whoever asks, and however many."""
    upload = Upload(1e6)
    began = trio.current_time()

    async def one(origin: str) -> None:
        for _ in range(20):
            await upload.turn(origin, SLICE_BYTES)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(one, str(number % 3))
    seconds = trio.current_time() - began
    assert 6 * 20 * SLICE_BYTES / seconds == pytest.approx(1e6, rel=0.01)
    assert not upload._origins


async def test_origins_take_turns(autojump_clock: MockClock) -> None:
    """Who opens thirty conversations has no more than who opens one."""
    upload, taken = Upload(1e6), {"crowd": 0, "one": 0}

    async def take(origin: str) -> None:
        while True:
            await upload.turn(origin, SLICE_BYTES)
            taken[origin] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(take, "crowd")
        nursery.start_soon(take, "one")
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert abs(taken["crowd"] - taken["one"]) <= 2


async def test_sessions_come_first(autojump_clock: MockClock) -> None:
    """While they are computed a part of the rate is left."""
    busy, seconds = [True], []
    upload = Upload(1e6, lambda: busy[0])
    for busy[0] in (True, False):
        began = trio.current_time()
        for _ in range(100):
            await upload.turn("one", SLICE_BYTES)
        seconds.append(trio.current_time() - began)
    assert seconds[1] / seconds[0] == pytest.approx(BUSY_SHARE, rel=0.05)


async def test_who_gives_up_waiting_holds_up_nobody(autojump_clock: MockClock) -> None:
    """Cancelled in line, at any time."""
    upload, rng = Upload(1e6), random.Random(1)

    async def impatient(origin: str) -> None:
        for _ in range(20):
            with trio.move_on_after(rng.uniform(0, 0.3)):
                await upload.turn(origin, SLICE_BYTES)

    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(impatient, str(number % 2))
    assert not upload._origins
    with trio.fail_after(1):
        await upload.turn("one", SLICE_BYTES)
